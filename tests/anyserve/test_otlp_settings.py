"""Which collector the command line names."""

from __future__ import annotations

import argparse
import sys

import pytest

from anyserve.otlp import settings


def read(*arguments: str) -> str | None:
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    return settings.endpoint(parser.parse_args(arguments))


def test_spans_go_nowhere_unless_asked() -> None:
    assert read() is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:4318", "http://127.0.0.1:4318/"])
def test_the_path_of_traces_is_put_behind_the_url(url: str) -> None:
    assert read("--otlp", url) == "http://127.0.0.1:4318/v1/traces"


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", ""])
def test_what_is_no_url_of_a_collector_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no URL"):
        read("--otlp", url)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_NEEDED", "no_such_package.within")
    with pytest.raises(ValueError, match=r"pip install 'anyserve\[otel\]'"):
        read("--otlp", "http://127.0.0.1:4318")
    assert "no_such_package" not in sys.modules
