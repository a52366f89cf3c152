"""The options of the HTTP port, and what is wrong with them in one line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from anyserve.cli.arguments import port
from anyserve.http.settings import HttpConfig, add_options, http_config


def parsed(*arguments: str) -> HttpConfig | None:
    parser = argparse.ArgumentParser()
    add_options(parser, port)
    return http_config(parser.parse_args(arguments))


def test_without_the_port_there_is_no_http() -> None:
    assert parsed() is None


def test_keys_come_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n")
    config = parsed(
        *("--http", "0", "--api-key", "zero", "--api-key-file", str(file)),
        *("--cors", "https://a.example", "--cors", "https://b.example", "--http-limit", "1"),
    )
    assert config == HttpConfig(
        "127.0.0.1",
        0,
        ("zero", "one", "two"),
        ("https://a.example", "https://b.example"),
        1024 * 1024,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api-key", "x"], "--http is missing"),
        (["--cors", "*"], "--http is missing"),
        (["--http", "0", "--api-key", " "], "--api-key is empty"),
        (["--http", "0", "--api-key-file", "/nowhere"], "can't be read"),
        (["--http", "0", "--api-key-file", "/dev/null"], "has 0 keys"),
        (["--http", "0", "--http-limit", "0"], "--http-limit is 1 or more"),
    ],
)
def test_what_makes_no_sense_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(*arguments)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyserve.http.settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'anyserve\[http\]'"):
        parsed("--http", "0")
