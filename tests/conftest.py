"""A live replica for the tests: the real command in a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import grpc
import pytest
import trio
from hypothesis import HealthCheck, settings
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from anyserve.transport.wires import WIRES

# How long an example takes says more about the machine than about the code.
settings.register_profile("anyserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anyserve")

T = TypeVar("T")
ROOT = Path(__file__).parent.parent
HTTP = re.compile(r"^HTTP on (\S+)$", re.MULTILINE)
READY = re.compile(r"^ready in .* on (\S+:(\d+))$", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --transport grpclib` tests replicas on the reference transport."""
    parser.addoption(
        "--transport",
        choices=WIRES,
        default=WIRES[0],
        help=f"what carries the calls of the replicas under test ({WIRES[0]})",
    )
    parser.addoption(
        "--console-picture", metavar="FILE", help="where to put a picture of the console"
    )
    parser.addoption(
        "--browser", action="store_true", help="run the tests that need a browser, and those alone"
    )


@pytest.fixture(scope="session", autouse=True)
def leash() -> Iterator[None]:
    """Ends what the tests have started, should this process end before it can: see `leash.py`."""
    run, variable = os.pidfd_open(os.getpid()), f"ANYSERVE_TESTS_{os.getpid()}_{time.time_ns()}"
    command = [sys.executable, str(ROOT / "tests" / "leash.py"), str(run), variable]
    watcher = subprocess.Popen(command, pass_fds=[run], start_new_session=True)
    os.close(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, "1")
        yield
    watcher.kill()
    watcher.wait()


@pytest.fixture(scope="session")
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the calls of the replicas under test."""
    name: str = request.config.getoption("--transport")
    return name


@attrs.define
class LiveReplica:
    """A replica that serves."""

    process: subprocess.Popen[str]
    address: str
    port: int
    log: Path
    """Its standard error."""
    http: str = ""
    """Where it serves HTTP, with `--http`."""

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text()

    def stop(self, timeout: float = 30) -> int:
        """Ask it to drain, and wait; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


StartReplica = Callable[..., LiveReplica]


@contextmanager
def running_replica(log: Path, *options: str) -> Iterator[LiveReplica]:
    """Run `python -m anyserve.replica` with `options` until the block ends."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "apps")}
    with log.open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "anyserve.replica", "--port", "0", *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=error,
            text=True,
        )
    try:
        assert process.stdout is not None
        printed = ""
        while (match := READY.search(printed)) is None:
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"the replica did not start: {printed}{log.read_text()}")
            printed += line
        http = HTTP.search(printed)
        address = http[1] if http else ""
        yield LiveReplica(process, match[1], int(match[2]), log, address)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[LiveReplica]:
    """One that all tests share, which leave it as they found it: `tests/apps/behaviours.py`."""
    log = tmp_path_factory.mktemp("replica") / "log"
    with running_replica(log, "--transport", transport, "--app", "behaviours:app") as live:
        yield live


@pytest.fixture(scope="session")
def http_replica(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[LiveReplica]:
    """The same with HTTP."""
    log = tmp_path_factory.mktemp("http-replica") / "log"
    options = ("--transport", transport, "--app", "behaviours:app", "--http", "0")
    with running_replica(log, *options) as live:
        yield live


@pytest.fixture(scope="session")
def scripted_replica(
    tmp_path_factory: pytest.TempPathFactory, transport: str
) -> Iterator[LiveReplica]:
    """One with an engine that says what it is told to: `tests/apps/scripted.py`."""
    log = tmp_path_factory.mktemp("scripted") / "log"
    options = ("--transport", transport, "--app", "scripted:create_app", "--http", "0")
    with running_replica(log, *options) as live:
        yield live


@pytest.fixture
def start_replica(tmp_path: Path, transport: str) -> Iterator[StartReplica]:
    """Start replicas of the test's own; they end with it."""
    with ExitStack() as stack:
        started = 0

        def start(*options: str) -> LiveReplica:
            nonlocal started
            started += 1
            log = tmp_path / f"replica-{started}.log"
            return stack.enter_context(running_replica(log, "--transport", transport, *options))

        yield start


@pytest.fixture(scope="session")
def start_session_replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartReplica]:
    """Start replicas that serve until the tests end: for what takes long to load."""
    with ExitStack() as stack:

        def start(*options: str) -> LiveReplica:
            log = tmp_path_factory.mktemp("replica") / "log"
            return stack.enter_context(running_replica(log, *options))

        yield start


@attrs.frozen
class Refusal:
    """How a call failed."""

    code: grpc.StatusCode
    message: str


@attrs.frozen
class RawClient:
    """grpcio with tritonclient's stubs, for what the comfortable clients can't say."""

    channel: grpc.Channel
    stub: GRPCInferenceServiceStub

    def call(self, method: str, request: Any, **options: Any) -> Any:
        """The answer to a call that succeeds."""
        return getattr(self.stub, method)(request, **{"timeout": 20, **options})

    def refusal(self, method: str, request: Any, **options: Any) -> Refusal:
        """The status and message of a call that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.call(method, request, **options)
        return Refusal(caught.value.code(), caught.value.details())


@contextmanager
def raw_client(address: str) -> Iterator[RawClient]:
    """A connection of its own."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        yield RawClient(channel, GRPCInferenceServiceStub(channel))


@pytest.fixture(scope="session")
def raw(replica: LiveReplica) -> Iterator[RawClient]:
    """A raw client of the shared replica."""
    with raw_client(replica.address) as client:
        yield client


@pytest.fixture(scope="session")
def triton(replica: LiveReplica) -> Iterator[InferenceServerClient]:
    """tritonclient's synchronous client of the shared replica."""
    with InferenceServerClient(replica.address) as client:
        yield client


@pytest.fixture
def connect() -> Iterator[Callable[[str], RawClient]]:
    """Raw clients of an address, each with a connection of its own; they close with the test."""
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(raw_client(address))


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Debian's chromium; the test skips where it is not installed.

    Playwright runs asyncio in this thread, where no test can run Trio then, should it not end well.
    So these tests are for a run of their own: `pytest --browser`.
    """
    if not request.config.getoption("--browser"):
        pytest.skip("a browser is for a run of its own: --browser")
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def open_console(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the console at an address; what the browser complains of fails the test."""
    complaints: list[str] = []
    context = browser.new_context()

    def opened(address: str, *, expected: str = "") -> Any:
        """expected: a complaint that is none."""

        def complain(text: str) -> None:
            if not expected or expected not in text:
                complaints.append(text)

        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: message.type == "error" and complain(message.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.goto(f"http://{address}/console")
        return page

    try:
        yield opened
    finally:
        context.close()
    assert complaints == []


@pytest.fixture(scope="session")
def ask_http() -> Callable[..., tuple[int, str]]:
    """Asks an HTTP port, whatever it answers."""

    def ask(address: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """The status and the text of an answer.

        body: posted, as JSON unless it is bytes; None: the path is got. headers: by names with
        underscores.
        """
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://{address}{path}", data, named)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return ask


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Waits for what another process does, which no event here tells of."""

    def wait(condition: Callable[[], T], timeout: float = 20.0) -> T:
        """The first true value of `condition`; fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {timeout:g} s"
            time.sleep(0.01)
        return value

    return wait


@pytest.fixture(scope="session")
def eventually_here() -> Callable[..., Any]:
    """As `eventually`, for tests that run in Trio beside a replica of their own process."""

    async def wait(condition: Callable[[], T]) -> T:
        with trio.fail_after(20):
            while not (value := condition()):  # noqa: ASYNC110 - other processes make it true
                await trio.sleep(0.01)
        return value

    return wait
