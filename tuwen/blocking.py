"""Methods that block, made of coroutine methods: what `Client` is made of.

A coroutine over `tuwen.exchange.BlockingTransport` waits inside the calls it makes and is never suspended, so that one
step runs it from its beginning to its end, without an event loop.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

Operations = TypeVar("Operations")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Blocking(Generic[Operations]):
    """Holds the operations that its methods run; their transport has to be one that blocks."""

    def __init__(self, operations: Operations):
        self._operations = operations


def blocking(
    operation: Callable[Concatenate[Operations, Parameters], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Blocking[Operations], Parameters], Result]:
    """The method that runs a coroutine method to its end; parameters, result and errors are the same."""

    @wraps(operation)
    def method(self: Blocking[Operations], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return complete(operation(self._operations, *args, **kwargs))

    return method


def iterating(
    operation: Callable[Concatenate[Operations, Parameters], AsyncGenerator[Result, None]],
) -> Callable[Concatenate[Blocking[Operations], Parameters], Iterator[Result]]:
    """The method that iterates over what an async generator method yields."""

    @wraps(operation)
    def method(self: Blocking[Operations], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Result]:
        return _iterate(operation(self._operations, *args, **kwargs))

    # What help() shows; a type checker reads the annotation above.
    method.__signature__ = signature(operation).replace(return_annotation=Iterator)  # type: ignore[attr-defined]
    return method


def complete(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that is never suspended; its result.

    Raises:
        RuntimeError: it was suspended, so its transport is not one that blocks.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    coroutine.close()
    raise RuntimeError("this coroutine waits for an event loop")


def _iterate(items: AsyncGenerator[Result, None]) -> Iterator[Result]:
    try:
        while True:
            try:
                item = complete(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        complete(items.aclose())
