"""``@task.generate_videos``: a function returns the rows; the rest is ``GenerateVideosOperator``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    task_decorator_factory,
)

from airflow_provider_codegateway.decorators.function import call, require_plain, type_name
from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.inputs import hide
from airflow_provider_codegateway.operators.base import HidesMedia, refuse_multiple_outputs
from airflow_provider_codegateway.operators.videos import RETURNS, GenerateVideosOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class _GenerateVideosDecoratedOperator(DecoratedOperator, GenerateVideosOperator):
    """Runs the function, once for each attempt, and renders the rows that it returned.

    :param python_callable: returns a list of dicts, or the ``s3://`` URI of a ``.jsonl`` or ``.csv`` object.
    :param op_args: positional arguments for it.
    :param op_kwargs: keyword arguments for it.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in GenerateVideosOperator.template_fields if name != "requests"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        "parameters": "json",
    }
    custom_operator_name = "@task.generate_videos"
    if not hasattr(GenerateVideosOperator, "xcom_push"):
        # The decorator of Airflow 3.0 asks for it, and the operator there has none.
        xcom_push: Any = None

    # An upstream task may well pass presigned links on.
    op_args = HidesMedia()
    op_kwargs = HidesMedia()

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        require_plain(python_callable, decorator="@task.generate_videos")
        if "requests" in kwargs:
            raise TypeError("@task.generate_videos takes no requests: the function returns them.")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            requests=SET_DURING_EXECUTION,
            **kwargs,
        )

    def _run(self, context: Context) -> str:
        self.requests = self._returned(context)
        return super()._run(context)

    def _returned(self, context: Context) -> Any:
        """The rows.

        :raises InvalidRequest: the function returned something else.
        """
        returned = call(self.python_callable, self.op_args, self.op_kwargs, context)
        if isinstance(returned, str):
            return returned
        if not isinstance(returned, Iterable) or isinstance(returned, Mapping | bytes):
            raise InvalidRequest(
                f"{self.python_callable.__name__}() returned "
                f"{type_name(returned)}. Return a list of dicts, or the s3:// "
                "URI of a .jsonl or .csv object."
            )
        # Hidden here already: what a function returned is data and no template, whatever it looks like.
        return hide(list(returned))


def generate_videos_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns the rows of a batch. In a DAG file: ``@task.generate_videos(…)``.

    The function returns a list of dicts, or the ``s3://`` URI of a ``.jsonl`` or ``.csv`` object. Everything else is as
    in ``GenerateVideosOperator``.

    :param python_callable: the function. It runs in the worker, once for each attempt, before anything is bought.
    :param kwargs: arguments of ``GenerateVideosOperator`` and of Airflow's ``BaseOperator``.
    """
    refuse_multiple_outputs(kwargs.pop("multiple_outputs", False), returns=RETURNS)
    return task_decorator_factory(
        python_callable=python_callable,
        # A function annotated as returning a dict would else make Airflow expect a dict of the task.
        multiple_outputs=False,
        decorated_operator_class=_GenerateVideosDecoratedOperator,
        **kwargs,
    )
