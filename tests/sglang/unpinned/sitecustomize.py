"""Lets a server that is half of a pair run without CUDA, which it takes for granted in places.

Half of a pair pins memory, and waits for events and streams of a GPU, whatever the device is. Here
memory is as it is, and all that was asked for has happened. Imported at the interpreter's start,
where this folder is on PYTHONPATH; it changes torch once SGLang looks for its kernels, since
torch's own modules read it while they are imported.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

_MAKERS = ("empty", "zeros", "ones", "tensor", "full", "arange", "empty_strided")
_MAKERS_LIKE = ("empty_like", "zeros_like")


class _BeforeKernels(MetaPathFinder):
    """Finds nothing, but hears of the import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname == "sgl_kernel":
            sys.meta_path.remove(self)
            _do_without_cuda()


class _Done:
    """An event or a stream on which nothing is ever outstanding."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _other: Any) -> float:
        return 0.0

    def record_event(self, *_: Any) -> _Done:
        return self

    def nothing(self, *_: Any) -> None: ...

    record = wait = synchronize = wait_stream = wait_event = nothing


def _unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def made(*arguments: Any, pin_memory: bool = False, **options: Any) -> Any:
        return make(*arguments, **options)

    return made


def _do_without_cuda() -> None:
    import torch

    changed: Any = torch
    for name in _MAKERS + _MAKERS_LIKE:
        setattr(torch, name, _unpinned(getattr(torch, name)))
    changed.Tensor.pin_memory = lambda self, *_: self
    cuda = changed.cuda
    cuda.Event = cuda.Stream = _Done
    cuda.current_stream = lambda *_: _Done()
    cuda.synchronize = lambda *_: None
    cuda.set_device = lambda *_: None
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.current_device = lambda: 0


sys.meta_path.insert(0, _BeforeKernels())
