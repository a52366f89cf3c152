"""The real model and the real encoder, loaded once for all tests that only use them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from anyserve.engines.embedding.batcher import Encode
from anyserve.engines.embedding.engine import load_encoder
from anyserve.engines.text import TextEngine, TextSettings
from anyserve.engines.text.native import NativeServer

SETTINGS = TextSettings(slots=8, context=2048)


@pytest.fixture(scope="session")
def native() -> Iterator[NativeServer]:
    server = NativeServer.load(SETTINGS)
    yield server
    server.close()


@pytest.fixture
async def engine(native: NativeServer) -> AsyncIterator[TextEngine]:
    async with TextEngine.serving(native, SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="session")
def encoder() -> Encode:
    return load_encoder()
