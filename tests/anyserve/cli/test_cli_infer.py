"""`anyserve infer`: its command line, against a live replica."""

from __future__ import annotations

from typing import Any

import pytest

from anyserve.cli import main

WITHIN = ("--timeout", "20")


@pytest.mark.parametrize(
    "words",
    [
        ("lengths", "text=a", "text=bc", "--param", "x=1", *WITHIN),
        ("lengths", "--param", "x=1", "text=a", *WITHIN, "text=bc"),
        ("lengths", "text=a", "--param", "x=1", *WITHIN, "text=bc"),
        ("--param", "x=1", "lengths", *WITHIN, "--", "text=a", "text=bc"),
    ],
)
def test_inputs_are_read_wherever_they_stand(
    replica: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main(["infer", replica.address, *words]) == 0
    assert capsys.readouterr().out == "bytes: [1 2] int64 [2]\n"


def test_each_response_of_a_stream_is_printed(
    replica: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", replica.address, "repeat", "--stream", "IN=[3,4]", *WITHIN]) == 0
    assert capsys.readouterr().out == "OUT: 3\nOUT: 4\n"


def test_an_option_that_there_is_not_is_refused_with_all_behind_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["infer", "127.0.0.1:1", "lengths", "--unknown", "text=a"])
    assert caught.value.code == 2
    assert "unrecognized arguments: --unknown" in capsys.readouterr().err
