"""Lets torchvision be imported beside a torch without CUDA: declares two operators that it wants.

Imported at the interpreter's start, by the line in sglang_on_cpu.pth.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but hears of the import."""

    looking = False
    library: Any = None  # its operators go with it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.looking = False
        import torch

        with contextlib.suppress(RuntimeError):  # they are there already
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
        return spec


sys.meta_path.insert(0, _BeforeTorchvision())
