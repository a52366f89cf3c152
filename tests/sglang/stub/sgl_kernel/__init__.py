"""Stands in for SGLang's own kernels, of which there is no wheel for the CPU.

SGLang serves with plain torch then; of the kernels it calls this one all the same. For tests.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.4.10"


def assign_req_to_token_pool_cpu(
    req_pool_indices: Any,
    req_to_token: Any,
    start_offset: Any,
    end_offset: Any,
    out_cache_loc: Any,
    pool_len: int,
) -> None:
    """Write each request's new cache places, which lie one after the other, into its row."""
    at = 0
    rows, starts, ends = (x.tolist() for x in (req_pool_indices, start_offset, end_offset))
    for row, start, end in zip(rows, starts, ends, strict=True):
        places = out_cache_loc[at : at + end - start]
        req_to_token[row, start:end] = places.to(req_to_token.dtype)
        at += end - start


def __getattr__(name: str) -> Any:
    """Any other kernel is there to be imported, and fails when it is called."""
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} is not there on the CPU")

    return missing
