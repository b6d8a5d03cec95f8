"""The function that a decorator turns into a task."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_codegateway.inputs import reveal
from airflow_provider_codegateway.operators.base import HidesMedia, RenderingOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class FunctionOperator(DecoratedOperator, RenderingOperator):
    """Runs a function, once for each try, before anything is bought.

    :param python_callable: returns what to render.
    :param op_args: positional arguments for it.
    :param op_kwargs: keyword arguments for it.
    """

    custom_operator_name: str

    # An upstream task may well pass a presigned link or an image's bytes on.
    op_args = HidesMedia()
    op_kwargs = HidesMedia()

    if not hasattr(RenderingOperator, "xcom_push"):
        # The decorator of Airflow 3.0 asks for it, and the operator there has none. It does not push a single output.
        xcom_push: Any = None

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if inspect.iscoroutinefunction(python_callable):
            raise TypeError(
                f"{self.custom_operator_name} takes a plain function, and {python_callable.__name__} is an async one."
            )
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def _call_function(self, context: Context) -> Any:
        """What the function returns, for arguments whose media are hidden, and what it takes of the context."""
        args, kwargs = reveal(self.op_args), reveal(self.op_kwargs)
        context_merge(context, kwargs)
        return self.python_callable(*args, **determine_kwargs(self.python_callable, args, context))


def type_name(returned: object) -> str:
    """What a function returned, in a message."""
    return "nothing" if returned is None else type(returned).__name__


def make_decorator(
    operator: type[FunctionOperator], python_callable: Callable[..., Any] | None, **kwargs: Any
) -> TaskDecorator:
    """The decorator that makes tasks of such an operator."""
    operator.refuse_multiple_outputs(kwargs.pop("multiple_outputs", False))
    return task_decorator_factory(
        python_callable=python_callable,
        # A function annotated as returning a dict would else make Airflow expect a dict of the task.
        multiple_outputs=False,
        decorated_operator_class=operator,
        **kwargs,
    )
