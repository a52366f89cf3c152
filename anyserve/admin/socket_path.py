"""Where an admin socket is: a Unix socket in a folder that only its user can enter."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def directory() -> Path:
    """The folder of this user's admin sockets, whether or not it is there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "anyserve"
    return Path(tempfile.gettempdir()) / f"anyserve-{os.getuid()}"


def socket_path(port: int) -> Path:
    """The admin socket of whoever serves on `port` of this machine."""
    return directory() / f"{port}.sock"


def prepare_directory() -> None:
    """Make the folder where it is missing.

    Raises `PermissionError` when it is another user's, or others may enter it: in a shared
    temporary folder, someone else could have made it first.
    """
    path = directory()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not mine or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"the folder of the admin socket, {path}, is not this user's alone")
