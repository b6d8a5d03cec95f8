"""``@task.generate_videos``: a function returns the rows; the rest is ``GenerateVideosOperator``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import SET_DURING_EXECUTION, DecoratedOperator

from airflow_provider_codegateway.decorators.function import FunctionOperator, make_decorator, type_name
from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.inputs import hide
from airflow_provider_codegateway.operators.videos import GenerateVideosOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class _GenerateVideosDecoratedOperator(FunctionOperator, GenerateVideosOperator):
    """Renders the rows that the function returned: dicts, or the ``s3://`` URI of a ``.jsonl`` or ``.csv`` object."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(name for name in GenerateVideosOperator.template_fields if name != "requests"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        "parameters": "json",
    }
    custom_operator_name = "@task.generate_videos"

    def __init__(self, **kwargs: Any) -> None:
        if "requests" in kwargs:
            raise TypeError("@task.generate_videos takes no requests: the function returns them.")
        super().__init__(requests=SET_DURING_EXECUTION, **kwargs)

    def _run(self, context: Context) -> str:
        self.requests = self._returned(context)
        return super()._run(context)

    def _returned(self, context: Context) -> Any:
        """The rows.

        :raises InvalidRequest: the function returned something else.
        """
        returned = self._call_function(context)
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
    return make_decorator(_GenerateVideosDecoratedOperator, python_callable, **kwargs)
