"""The function that a decorator turns into a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import context_merge, determine_kwargs

from airflow_provider_codegateway.inputs import reveal

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def require_plain(function: Callable[..., Any], *, decorator: str) -> None:
    """
    :raises TypeError: the function is async.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{decorator} takes a plain function, and {function.__name__} is an async one.")


def call(
    function: Callable[..., Any], args: Collection[Any], kwargs: Mapping[str, Any], context: Context
) -> Any:
    """What the function returns, for arguments whose media are hidden, and what it takes of the context."""
    args, kwargs = reveal(args), reveal(kwargs)
    context_merge(context, kwargs)
    return function(*args, **determine_kwargs(function, args, context))


def type_name(returned: object) -> str:
    """What a function returned, in a message."""
    return "nothing" if returned is None else type(returned).__name__
