"""How an app and its options are written on the command line."""

from __future__ import annotations

import argparse

import pytest

from anyserve.cli.arguments import app


def test_options_stand_after_the_app() -> None:
    given = app("mine.module:make?url=http://h:1/a=b&args=--dtype float16 %26 +x")
    assert given.target == "mine.module:make"
    assert given.options == {"url": "http://h:1/a=b", "args": "--dtype float16 & +x"}


def test_an_app_without_options_has_none() -> None:
    assert app("mine:app").options == {}


@pytest.mark.parametrize("text", ["mine:app?url", "mine:app?a=1&a=2", "mine:app?=1", "m:a?a b=1"])
def test_options_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        app(text)
