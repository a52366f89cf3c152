"""Declaring handlers: an `App` is a set of capabilities with the functions that serve them."""

from __future__ import annotations

import enum
import importlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs

from anyserve.capability import Attribute
from anyserve.offers import Offer, declare, parse_specs

Function = TypeVar("Function", bound=Callable[..., Any])
Lifespan = Callable[["App"], AbstractAsyncContextManager[None]]


class Kind(enum.Enum):
    """How a handler is called."""

    ASYNC = "async def, one response"
    ASYNC_STREAM = "async generator, any number of responses"
    BLOCKING = "plain function, one response, run in a thread"
    BLOCKING_STREAM = "plain generator, any number of responses, run in a thread"

    @property
    def streams(self) -> bool:
        return self in (Kind.ASYNC_STREAM, Kind.BLOCKING_STREAM)


def kind_of(function: Callable[..., Any]) -> Kind:
    """How `function` has to be called, read from its definition."""
    target = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isasyncgenfunction(target):
        return Kind.ASYNC_STREAM
    if inspect.iscoroutinefunction(target):
        return Kind.ASYNC
    if inspect.isgeneratorfunction(target):
        return Kind.BLOCKING_STREAM
    return Kind.BLOCKING


@attrs.frozen
class Handler:
    """A declared capability and the function that serves it."""

    offer: Offer
    function: Callable[..., Any]
    kind: Kind


@attrs.frozen
class Condition:
    """How what a capability depends on is, such as a server."""

    reason: str = ""
    """Why nothing can be served for now; empty: it can."""
    others: int = 0
    """Requests of others that the server runs or keeps waiting: none of the app's own."""


class App:
    """The user's handlers and what they need while they run.

    app = App()

    @app.capability("echo")
    async def echo(request, context):
        return Response(outputs={"OUTPUT0": request["INPUT0"]})
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._lifespan: Lifespan | None = None
        self._conditions: dict[str, Condition] = {}
        self._tell: Callable[[str, Condition], None] = lambda _name, _condition: None

    def capability(
        self,
        name: str,
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Mapping[str, str] | None = None,
        version: str = "1",
        max_batch_size: int = 0,
        decoupled: bool | None = None,
        sequence: bool = False,
        sequence_idle: float = 60.0,
        concurrency: int = 64,
        queue: int = 1024,
        idempotent: bool = False,
        resumable: bool = False,
        **attributes: Attribute,
    ) -> Callable[[Function], Function]:
        """Declare that the decorated function serves the capability `name`.

        The function takes `(request, context)`. It is `async def` and returns a `Response`, an
        async generator that yields them, or the plain form of either, which runs in a thread.

        inputs, outputs: tensor specifications by name, as `"FP32[-1,4]"` (`-1`: any size; a
            trailing `?`: optional). They become the model's metadata, and inputs are checked
            before the handler runs. None declared: anything is let through.
        version: the version number that answers carry.
        max_batch_size: over 0, every tensor has a leading batch dimension of at most this, which
            the specifications leave out.
        decoupled: whether a request may have any number of responses; by default generators are.
        sequence: all requests of one `sequence_id` go to one worker, in order, from
            `sequence_start` to `sequence_end` or until `sequence_idle` seconds have passed.
        concurrency: requests at once in one worker.
        queue: requests that may wait, over all workers.
        idempotent: a request whose worker dies before it has answered is run once more on another.
        resumable: a stream whose replica dies may go on at another: responses have `token_ids`
            where a request says `return_token_ids`, and the handler takes those of all responses
            so far as `resume_token_ids` and gives what comes after them.
        attributes: what requests may ask for beside the name (`model="mine"`, `max_context=8192`).

        Raises `ValueError` for a declaration that makes no sense or a name declared twice.
        """
        if name in self._handlers:
            raise ValueError(f"capability {name!r} is declared twice")

        def register(function: Function) -> Function:
            kind = kind_of(function)
            offer = declare(
                name,
                attributes,
                inputs=parse_specs(inputs or {}),
                outputs=parse_specs(outputs or {}),
                version=version,
                max_batch_size=max_batch_size,
                decoupled=kind.streams if decoupled is None else decoupled,
                sequence=sequence,
                sequence_idle=sequence_idle,
                concurrency=concurrency,
                queue=queue,
                idempotent=idempotent,
                resumable=resumable,
            )
            self._handlers[name] = Handler(offer, function, kind)
            return function

        return register

    def lifespan(
        self, function: Callable[[App], AsyncIterator[None]]
    ) -> Callable[[App], AsyncIterator[None]]:
        """Declare what runs around the handlers: an async generator that loads, yields, unloads.

        The worker is ready when it has yielded. One an app.
        """
        if self._lifespan is not None:
            raise ValueError("the app has a lifespan already")
        if not inspect.isasyncgenfunction(function):
            raise ValueError("a lifespan is an async generator function that yields once")
        self._lifespan = asynccontextmanager(function)
        return function

    def describe(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        resumable: bool | None = None,
        **attributes: Attribute,
    ) -> None:
        """Say more of the offer of `name`; in the lifespan, what only loading could tell.

        attributes: added to those that are declared. The others, where given, replace what was
            declared.
        """
        handler = self.handler(name)
        offer = handler.offer.with_attributes(attributes)
        if concurrency is not None:
            offer = attrs.evolve(offer, concurrency=concurrency)
        if resumable is not None:
            offer = attrs.evolve(offer, resumable=resumable)
        self._handlers[name] = attrs.evolve(handler, offer=offer)

    def set_health(self, name: str, reason: str = "") -> None:
        """Say why requests for `name` can't be served for now, or that they can again.

        With a reason they are UNAVAILABLE, and the scheduler sends them elsewhere. For what a
        handler depends on, such as a server; the app's lifespan finds it out.
        """
        self._change(name, reason=reason)

    def set_others(self, name: str, count: int) -> None:
        """Say how many requests of others a server runs or keeps waiting, that `name` depends on.

        They count as load of the offer, so that the scheduler sends its requests where there is
        more room. Nothing is refused for it here.
        """
        self._change(name, others=count)

    def _change(self, name: str, **changes: Any) -> None:
        before = self._conditions.get(name, Condition())
        condition = attrs.evolve(before, **changes)
        if condition != before:
            self._conditions[name] = condition
            self._tell(name, condition)

    def watch(self, tell: Callable[[str, Condition], None]) -> None:
        """Have `tell` called with each capability's name and condition when that changes, and now
        with those that have one; for whoever runs the app."""
        self._tell = tell
        for name, condition in self._conditions.items():
            tell(name, condition)

    def handler(self, name: str) -> Handler:
        """The handler of the capability `name`; raises `KeyError`."""
        return self._handlers[name]

    @property
    def handlers(self) -> list[Handler]:
        """All handlers, in the order of declaration."""
        return list(self._handlers.values())

    @property
    def offers(self) -> list[Offer]:
        """What the app declares, in the order of declaration."""
        return [handler.offer for handler in self._handlers.values()]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The app's lifespan, around the body. Raises what loading raises."""
        if self._lifespan is None:
            yield
            return
        async with self._lifespan(self):
            yield


class AppError(Exception):
    """An app that can't be had, in one line that tells its author why."""


def load_app(target: str, options: Mapping[str, str] | None = None) -> App:
    """The `App` that `target` names: `module:attribute`, an `App` or a factory of one.

    options: keyword arguments for a factory. The working directory is importable, as it is for
    `python -m`. Raises `AppError`, with the import's own error as its cause.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name:
        raise AppError(f"app {target!r} is not of the form module:attribute")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise AppError(
            f"app {target!r} can't be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, attribute or "app", None)
    if found is None:
        raise AppError(f"app {target!r}: module {module_name!r} has no {attribute or 'app'!r}")
    if not isinstance(found, App):
        found = _call_factory(target, found, options or {})
    elif options:
        raise AppError(f"app {target!r} is no factory, so it takes no options")
    if not found.offers:
        raise AppError(f"app {target!r} declares no capability")
    return found


def _call_factory(target: str, factory: Any, options: Mapping[str, str]) -> App:
    if not callable(factory):
        raise AppError(f"app {target!r} is a {type(factory).__name__}, not an App or its factory")
    try:
        found = factory(**options)
    except Exception as error:
        raise AppError(f"app {target!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, App):
        raise AppError(f"app {target!r} returned a {type(found).__name__}, not an App")
    return found
