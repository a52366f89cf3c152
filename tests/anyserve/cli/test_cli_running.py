"""How commands end, with signals that are really sent."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator

import pytest
import trio

from anyserve.cli.running import run_async
from anyserve.errors import AnyServeError, NotFound

OPTIONS = argparse.Namespace()


@pytest.fixture(autouse=True)
def heeded_interrupt() -> Iterator[None]:
    """Ctrl-C counts, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def waits(options: argparse.Namespace) -> None:
    """Ctrl-C, while a nursery is open as a channel has one."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_a_command_that_waits_with_the_status_it_asks_for() -> None:
    assert run_async(waits, OPTIONS) == 1
    assert run_async(waits, OPTIONS, interrupted=0) == 0


@pytest.mark.parametrize(
    "error, said",
    [
        (NotFound("nobody\nthere"), "anyserve: nobody there\n"),
        (OSError(28, "No space left"), "anyserve: [Errno 28] No space left\n"),
        (trio.TooSlowError(), "anyserve: no answer in time\n"),
    ],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_what_a_command_fails_with_is_one_line_and_status_1(
    error: AnyServeError | OSError, said: str, grouped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(options: argparse.Namespace) -> None:
        if grouped:
            raise ExceptionGroup("a nursery", [error])
        raise error

    assert run_async(fails, OPTIONS) == 1
    assert capsys.readouterr().err == said


def test_a_command_says_by_its_status_what_it_found() -> None:
    async def finds(options: argparse.Namespace) -> int:
        return 3

    async def does(options: argparse.Namespace) -> None:
        pass

    assert (run_async(finds, OPTIONS), run_async(does, OPTIONS)) == (3, 0)


def test_of_several_errors_with_one_cause_the_first_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def fails(options: argparse.Namespace) -> None:
        raise ExceptionGroup("a nursery", [NotFound("gone"), NotFound("so is this")])

    assert run_async(fails, OPTIONS) == 1
    assert capsys.readouterr().err == "anyserve: gone\n"
