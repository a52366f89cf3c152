"""`decode` as requests see it: names of inputs and outputs, whole texts and streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from anyserve.app import App, load_app
from anyserve.engines import BUILTINS
from anyserve.engines.fields import ALWAYS, INPUTS, OUTPUTS, read_request
from anyserve.engines.text.app import create_app
from anyserve.errors import InvalidArgument, Unimplemented
from anyserve.messages import Context, Request, Response

PARIS = "The capital of France is"


def tensor(name: str, value: Any) -> np.ndarray[Any, Any]:
    """`value` as a client would send it for the input `name`."""
    datatype = INPUTS[name].partition("[")[0]
    values = value if isinstance(value, list) else [value]
    if datatype == "BYTES":
        return np.array([v.encode() if isinstance(v, str) else v for v in values], np.object_)
    kinds = {"BOOL": np.bool_, "INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}
    return np.array(values, kinds[datatype])


def request(parameters: dict[str, Any] | None = None, /, **inputs: Any) -> Request:
    arrays = {name: tensor(name, value) for name, value in inputs.items()}
    return Request("decode", arrays, "1", parameters or {})


@pytest.fixture
async def app() -> AsyncIterator[App]:
    app = create_app(slots="2", context="512")
    async with app.running():
        yield app


async def decode(app: App, request: Request) -> list[Response]:
    handler = app.handler("decode").function
    return [response async for response in handler(request, Context("test"))]


async def test_the_default_is_one_response_with_the_whole_text(app: App) -> None:
    [response] = await decode(app, request(text_input=PARIS, max_tokens=4))
    assert set(response.outputs) == ALWAYS
    assert str(response.outputs["text_output"]).startswith(" Paris")
    assert response.outputs["finish_reason"] == "length"
    assert response.outputs["num_input_tokens"] == 5
    assert response.outputs["num_output_tokens"] == 4


async def test_a_stream_has_a_response_for_each_piece_and_the_same_text(app: App) -> None:
    [whole] = await decode(app, request(text_input=PARIS, max_tokens=6))
    pieces = await decode(app, request(text_input=PARIS, max_tokens=6, stream=True))
    assert len(pieces) > 3
    assert "".join(str(p.outputs["text_output"]) for p in pieces) == whole.outputs["text_output"]
    assert [p.outputs["finish_reason"] for p in pieces] == [""] * (len(pieces) - 1) + ["length"]
    assert all(set(piece.outputs) == ALWAYS for piece in pieces)
    assert pieces[-1].outputs["num_output_tokens"] == 6
    assert sum(piece.tokens for piece in pieces) == whole.tokens == 6


async def test_messages_are_a_chat(app: App) -> None:
    messages = json.dumps([{"role": "user", "content": "What is the capital of France?"}])
    [response] = await decode(app, request(messages=messages, max_tokens=24))
    assert "Paris" in str(response.outputs["text_output"])
    assert response.outputs["finish_reason"] == "stop"


async def test_parameters_do_instead_of_inputs(app: App) -> None:
    parameters = {"text_input": PARIS, "max_tokens": 2, "stream": True}
    pieces = await decode(app, request(parameters))
    assert pieces[-1].outputs["num_output_tokens"] == 2


async def test_the_prompt_stands_before_the_text_where_it_is_asked_for(app: App) -> None:
    asked = request(text_input=PARIS, exclude_input_in_output=False, max_tokens=1)
    [response] = await decode(app, asked)
    assert response.outputs["text_output"] == f"{PARIS} Paris"


async def test_loading_tells_the_model_and_its_context(app: App) -> None:
    attributes = app.handler("decode").offer.capability.attributes
    assert attributes == {"model": "smollm2-135m-instruct", "max_context": 512}
    assert app.handler("decode").offer.concurrency == 2
    assert app.handler("decode").offer.decoupled


def test_the_built_in_app_is_declared_without_loading() -> None:
    [offer] = load_app(BUILTINS["decode"], {"model": "/nowhere.gguf"}).offers
    assert {spec.name for spec in offer.outputs} == set(OUTPUTS)
    assert all(spec.optional for spec in offer.inputs)


@pytest.mark.parametrize(
    "options", [{"slots": "0"}, {"slots": "many"}, {"context": "1"}, {"threads": "0"}]
)
def test_an_option_out_of_range_is_named(options: dict[str, str]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=name):
        create_app(**options)


def test_an_input_wins_over_sampling_parameters_and_those_over_request_parameters() -> None:
    asked = read_request(
        request(
            {"max_tokens": 1, "top_k": 1, "seed": 1},
            text_input="a",
            max_tokens=3,
            sampling_parameters='{"max_tokens": "2", "top_k": 2}',
        )
    )
    assert (asked.sampling.max_tokens, asked.sampling.top_k, asked.sampling.seed) == (3, 2, 1)


def test_what_one_request_asked_for_in_the_same_words_does_not_stay_for_the_next() -> None:
    words = '{"n": 1, "max_tokens": 7}'
    for _ in range(2):
        assert read_request(request(text_input="a", sampling_parameters=words)).sampling.n == 1
        both = read_request(request({"top_k": 2}, text_input="a", sampling_parameters=words))
        assert (both.sampling.top_k, both.sampling.max_tokens) == (2, 7)
        with pytest.raises(InvalidArgument, match="n: a whole number"):
            read_request(request(text_input="a", sampling_parameters=words.replace("1", "true")))


def test_every_sampling_input_is_read() -> None:
    asked = read_request(
        request(
            text_input="a",
            temperature=0.5,
            top_p=0.25,
            min_p=0.125,
            stop_words=["x", "ü"],
            random_seed=2**64 - 1,
            presence_penalty=1.5,
            frequency_penalty=-1.5,
            repetition_penalty=1.25,
            json_schema='{"type": "null"}',
        )
    )
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p) == (0.5, 0.25, 0.125)
    assert (sampling.stop, sampling.seed) == (("x", "ü"), 2**64 - 1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -1.5)
    assert (sampling.repetition_penalty, sampling.json_schema) == (1.25, '{"type": "null"}')


def test_an_output_that_is_not_wanted_is_left_out() -> None:
    asked = read_request(request(text_input="a", return_finish_reason=False))
    assert asked.outputs == ALWAYS - {"finish_reason"}


@pytest.mark.parametrize(
    "asked, message",
    [
        (request(), "text_input"),
        (request(text_input="a", messages="[]"), "text_input"),
        (request(text_input=b"\xff"), "text_input: not UTF-8"),
        (request(text_input="a", stop=["b", b"\xc3"]), "stop: not UTF-8"),
        (request({"text_input": 3}), "text_input: text is expected"),
        (request({"text_input": "a", "stream": "yes"}), "stream: true or false"),
        (request({"text_input": "a", "temperature": "hot"}), "temperature"),
        (request(text_input="a", sampling_parameters="[]"), "sampling_parameters"),
        (request(text_input="a", sampling_parameters="{"), "sampling_parameters"),
        (
            request(text_input="a", sampling_parameters='{"best_of": 2}'),
            "'best_of' is no",
        ),
        (request(text_input="a", sampling_parameters='{"seed": NaN}'), "seed"),
        (request(text_input="a", temperature=np.nan), "temperature"),
        (request(text_input="a", stream=True, exclude_input_in_output=False), "exclude_input"),
        (request(messages="[]"), "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_refused_by_the_name_of_what_is_wrong(
    asked: Request, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        read_request(asked)


def test_a_grammar_is_refused_rather_than_passed_through_as_an_unknown_parameter() -> None:
    with pytest.raises(Unimplemented, match="grammar"):
        read_request(request({"text_input": "a", "grammar": 'root ::= "a"'}))
