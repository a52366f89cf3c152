"""What is read of a GGUF file beside the native side, and which tokens a text is made of."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyserve.engines.text.gguf import Tokenizer, read_tokenizer
from anyserve.engines.text.native import NativeServer
from anyserve.engines.text.vocabulary import Vocabulary


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def gguf(values: dict[str, Any], version: int = 3, keys: int | None = None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(values) if keys is None else keys)
    return head + b"".join(text(key) + entry(value) for key, value in values.items())


def entry(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if value and isinstance(value[0], float):
        return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))


FILE: dict[str, Any] = {
    "general.name": "tiny",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.scores": [0.5, 1.5, 2.5, 3.5],
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 99,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_the_tokenizers_values_are_found_among_the_others(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path, gguf(FILE)))
    assert tokenizer == Tokenizer(
        model="llama",
        tokens=[b"<unk>", b"<s>", b"</s>", "▁a".encode()],
        bos="<s>",
        eos="",
        template="{{ messages }}",
    )


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    values = {"tokenizer.ggml.model": "gpt2"}
    assert read_tokenizer(write(tmp_path, gguf(values))).template is None


WHOLE = gguf(FILE)


@given(st.integers(8, len(WHOLE) - 1))
def test_a_file_cut_short_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = write(tmp_path_factory.mktemp("cut"), WHOLE[:length])
    with pytest.raises(ValueError):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "data",
    [
        gguf(FILE, version=1),
        gguf(FILE, keys=2**40),
        gguf(FILE, keys=9),
        WHOLE[:24] + struct.pack("<Q", 2**63) + WHOLE[32:],
        WHOLE.replace(struct.pack("<IIQ", 9, 8, 4), struct.pack("<IIQ", 9, 8, 2**62)),
        WHOLE.replace(struct.pack("<IIQ", 9, 6, 4), struct.pack("<IIQ", 9, 5000, 4)),
    ],
    ids=["version", "keys", "one key more", "string", "array", "type"],
)
def test_a_damaged_file_is_refused_in_bounded_time(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError):
        read_tokenizer(write(tmp_path, data))


def test_bytes_of_a_token_are_what_its_kind_of_vocabulary_writes() -> None:
    spelled = Tokenizer("gpt2", ["Ġhé".encode(), "ðŁĺ".encode(), b"<|end|>"], "", "", None)
    assert Vocabulary.of(spelled).texts == [b" h\xe9", b"\xf0\x9f\x98", b"<|end|>"]
    plain = Tokenizer("llama", ["▁hé".encode(), b"<0xF0>", b"<0x>"], "", "", None)
    assert Vocabulary.of(plain).texts == [" hé".encode(), b"\xf0", b"<0x>"]


def vocabulary(*tokens: bytes) -> Vocabulary:
    return Vocabulary(tokens, {token: number for number, token in enumerate(tokens)})


def test_tokens_before_the_last_one_are_found_by_their_bytes() -> None:
    known = vocabulary(b"\xf0", b"\x9f", b"\x98", b"\x8f", b"\xf0\x9f", b"\x9f\x98")
    assert known.before(3, 2, "😏".encode()) == (4, 2)
    assert known.before(3, 3, "😏".encode()) == (0, 1, 2)
    assert known.before(3, 1, "😏".encode()) is None
    assert known.before(3, 4, "😏".encode()) is None
    assert known.before(2, 2, "😏".encode()) is None
    assert known.before(99, 2, "😏".encode()) is None


def test_the_models_own_vocabulary_has_every_byte(native: NativeServer) -> None:
    known = native.model.vocabulary
    assert len(known.texts) == 49152
    found = known.before(known.ids["😏".encode()[-1:]], 2, "😏".encode())
    assert found is not None
    assert b"".join(known.texts[number] for number in found) == "😏".encode()[:-1]
