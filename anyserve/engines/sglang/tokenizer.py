"""What the files of a Hugging Face model say of its tokenizer: chat template, parts of characters.

They are read where the worker finds them; SGLang tells neither over HTTP.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import msgspec

from anyserve.engines.errors import CannotLoad
from anyserve.engines.templates import ChatTemplate, TemplateError, read_template
from anyserve.engines.token_bytes import plain, spelled_in_letters


class _Model(msgspec.Struct):
    vocab: Any
    """Ids by token, or a list of tokens and scores."""


class _Decoder(msgspec.Struct):
    type: str = ""
    decoders: list[_Decoder] = []


class _File(msgspec.Struct):
    model: _Model
    decoder: _Decoder | None = None


class _Config(msgspec.Struct):
    bos_token: Any = None
    eos_token: Any = None
    chat_template: Any = None


@attrs.frozen(eq=False)
class Tokenizer:
    """What is known of a model's tokenizer."""

    parts: dict[int, bytes]
    """The bytes of those tokens that are not whole characters; all others are."""
    bos: str
    template: ChatTemplate | None

    def inside(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` ends inside a character."""
        tail = b""
        for number in reversed(ids):
            part = self.parts.get(number)
            if part is None:
                break
            tail = part + tail
        if not tail:
            return False
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(tail)
        return bool(decoder.getstate()[0])


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder; None where there is none.

    Takes some 50 ms for 100,000 tokens. Raises `CannotLoad` for files that can't be read.
    """
    try:
        file = msgspec.json.decode((folder / "tokenizer.json").read_bytes(), type=_File)
    except OSError:
        return None
    except msgspec.DecodeError as error:
        raise CannotLoad(f"{folder / 'tokenizer.json'} is damaged: {error}") from None
    config = _read_config(folder / "tokenizer_config.json")
    bos = _special(config.bos_token)
    template = _read_template(folder, config, bos)
    return Tokenizer(dict(_parts(file)), bos, template)


def _read_config(path: Path) -> _Config:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Config)
    except OSError:
        return _Config()
    except msgspec.DecodeError as error:
        raise CannotLoad(f"{path} is damaged: {error}") from None


def _read_template(folder: Path, config: _Config, bos: str) -> ChatTemplate | None:
    source: str | None
    try:
        source = (folder / "chat_template.jinja").read_text()
    except OSError:
        source = _default(config.chat_template)
    if source is None:
        return None
    try:
        return read_template(source, bos=bos, eos=_special(config.eos_token))
    except TemplateError as error:
        raise CannotLoad(f"the chat template in {folder} can't be read: {error}") from None


def _default(templates: Any) -> str | None:
    """The template, which is one or the one called `default` of several."""
    if isinstance(templates, list):
        named = {item.get("name"): item.get("template") for item in templates}
        templates = named.get("default")
    return templates if isinstance(templates, str) else None


def _special(token: Any) -> str:
    """The text of a special token, which is written as text or as an object that has it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _parts(file: _File) -> Iterable[tuple[int, bytes]]:
    decoder = file.decoder or _Decoder()
    kinds = {decoder.type, *(inner.type for inner in decoder.decoders)}
    read = spelled_in_letters if "ByteLevel" in kinds else plain
    vocab = file.model.vocab
    tokens = vocab.items() if isinstance(vocab, dict) else ((t[0], i) for i, t in enumerate(vocab))
    for token, number in tokens:
        data = read(token)
        try:
            data.decode()
        except UnicodeDecodeError:
            yield number, data
