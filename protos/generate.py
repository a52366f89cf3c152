"""Generate `anyserve_protos` from the .proto files beside this script.

    python protos/generate.py           writes what has changed
    python protos/generate.py --check   writes nothing; exit code 1 when something would change

It writes betterproto2's message classes, a package for each protobuf package, and the descriptors
that server reflection answers with. Services are not generated: those classes import grpclib when
the module is imported, and a worker, which needs the messages, should not pay for a gRPC stack.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "anyserve_protos"

GENERATED_FOLDERS = ("anyserve", "grpc", "inference")
"""Top folders of the package that hold generated files and nothing else."""
GENERATED_FILES = ("message_pool.py", "descriptors.binpb")
"""Files beside them that are generated too."""

# For the plugin, which formats with whatever ruff configuration its working directory has.
RUFF_CONFIG = 'line-length = 100\ntarget-version = "py311"\n'


def generate(folder: Path) -> None:
    """Generate everything into the empty `folder`; raises SystemExit when the compiler fails."""
    (folder / "ruff.toml").write_text(RUFF_CONFIG)
    tools = Path(sys.executable).parent
    protos = sorted(path.name for path in HERE.glob("*.proto"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            f"--plugin=protoc-gen-python_betterproto2={tools / 'protoc-gen-python_betterproto2'}",
            f"--proto_path={HERE}",
            f"--python_betterproto2_out={folder}",
            "--python_betterproto2_opt=client_generation=none,server_generation=none",
            f"--descriptor_set_out={folder / 'descriptors.binpb'}",
            *protos,
        ],
        cwd=folder,
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"protoc failed:\n{done.stderr}")


def generated_files(folder: Path) -> dict[Path, bytes]:
    """The generated files in `folder`, by their path in it."""
    paths = [path for name in GENERATED_FILES if (path := folder / name).is_file()]
    for name in GENERATED_FOLDERS:
        paths += (p for p in (folder / name).rglob("*") if p.is_file() and p.suffix != ".pyc")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def changes(old: dict[Path, bytes], new: dict[Path, bytes]) -> list[Path]:
    """The files that are in one only, or differ."""
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def main(arguments: list[str]) -> int:
    """Run as a command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Generate anyserve_protos from protos/*.proto.")
    parser.add_argument("--check", action="store_true", help="only say what would change")
    check = parser.parse_args(arguments).check
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder)
        new = generated_files(folder)
        changed = changes(generated_files(PACKAGE), new)
        for path in changed:
            print(f"{'would change' if check else 'changed'}: {path}")
            if not check and path in new:
                (PACKAGE / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / path, PACKAGE / path)
            elif not check:
                (PACKAGE / path).unlink()
    return 1 if check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
