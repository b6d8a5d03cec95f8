"""``@task.generate_video``: a function says what to show; the rest is ``GenerateVideoOperator``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    TaskDeferred,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_0_PLUS, AIRFLOW_V_3_1_PLUS

from airflow_provider_codegateway.decorators.function import FunctionOperator, make_decorator, type_name
from airflow_provider_codegateway.exceptions import InvalidRequest, RenderOutcomeUnknown
from airflow_provider_codegateway.inputs import describe, hide, show
from airflow_provider_codegateway.models import PORTABLE
from airflow_provider_codegateway.operators.base import HidesMedia
from airflow_provider_codegateway.operators.video import GenerateVideoOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator

RETURNABLE = (
    "model",
    *PORTABLE,
    "s3_key",
    "s3_bucket",
    "poster_key",
    "last_frame_key",
    "sidecar_key",
    "fallbacks",
)
"""What the function may return, if it returns a dict: arguments of ``GenerateVideoOperator``."""

_SET_BY_FUNCTION = ("model", "prompt", "s3_key")


class _GenerateVideoDecoratedOperator(FunctionOperator, GenerateVideoOperator):
    """Renders what the function returned: the prompt, or a dict of ``RETURNABLE`` arguments."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GenerateVideoOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **GenerateVideoOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.generate_video"

    def __init__(self, **kwargs: Any) -> None:
        for name in _SET_BY_FUNCTION:
            if name not in (kwargs.get("default_args") or {}):
                kwargs.setdefault(name, SET_DURING_EXECUTION)
        self._given: dict[str, Any] = {}
        super().__init__(**kwargs)
        prompt: Any = self.prompt
        self._prompt_is_given &= prompt is not SET_DURING_EXECUTION

    @property
    def overwrite_rtif_after_execution(self) -> bool:  # type: ignore[override]
        """Whether Airflow's UI is to show what the function returned."""
        # Airflow 3.0 looks for a try under an id that changes if it is to be retried, and breaks off: no callback is
        # called, no listener told.
        is_airflow_3_0 = AIRFLOW_V_3_0_PLUS and not AIRFLOW_V_3_1_PLUS
        return not is_airflow_3_0 or self._clip is not None

    def _run(self, context: Context) -> str:
        self._set(self._given)
        self._set(self._requested(context))
        for name in _SET_BY_FUNCTION:
            if getattr(self, name) is SET_DURING_EXECUTION:
                setattr(self, name, None)
        try:
            return super()._run(context)
        except TaskDeferred:
            if not AIRFLOW_V_3_0_PLUS:
                # `dag.test` resumes this very object there, and renders its fields as templates again.
                self._set(self._given)
            raise

    def _set(self, arguments: dict[str, Any]) -> None:
        self._given = {name: getattr(self, name) for name in arguments}
        for name, value in arguments.items():
            is_media = isinstance(getattr(type(self), name, None), HidesMedia)
            # Hidden here already: what a function returned is data and no template, whatever it looks like.
            setattr(self, name, hide(value) if is_media else value)

    def _to_remember(self) -> dict[str, Any]:
        shown = {name: show(getattr(self, name)) for name in self._given}
        return {**super()._to_remember(), "shown": shown}

    def _resume(self, deferred: dict[str, Any]) -> None:
        # The function does not run again: this is for whoever looks at the task.
        super()._resume(deferred)
        self._set(deferred.get("shown", {}))

    def _unknown_outcome(self, reason: str, context: Context) -> RenderOutcomeUnknown:
        key: Any = self.s3_key
        if key is SET_DURING_EXECUTION:
            return RenderOutcomeUnknown(
                f"{reason} The function chose its key, so which ledger entry it has is not known here. Run the task "
                "again: it fetches what was bought."
            )
        return super()._unknown_outcome(reason, context)

    def _requested(self, context: Context) -> dict[str, Any]:
        """What the function asks for.

        :raises InvalidRequest: it returned something else than a prompt or arguments.
        """
        returned = self._call_function(context)
        function = f"{self.python_callable.__name__}()"
        if isinstance(returned, str):
            if not returned.strip():
                raise InvalidRequest(f"{function} returned an empty prompt. Return what to show.")
            return {"prompt": returned}
        if not isinstance(returned, Mapping):
            raise InvalidRequest(
                f"{function} returned {type_name(returned)}. Return a prompt (str), or a dict of arguments."
            )
        if unknown := [name for name in returned if name not in RETURNABLE]:
            raise InvalidRequest(
                f"{function} returned {', '.join(map(_shown, unknown))}. "
                f"Use {', '.join(RETURNABLE)}; put anything else that the model has into parameters."
            )
        if "prompt" in returned and (returned["prompt"] is None or returned["prompt"] == ""):
            raise InvalidRequest(
                f"{function} returned prompt={returned['prompt']!r}. Return what to show, or leave the prompt out."
            )
        return dict(returned)


def _shown(name: object) -> str:
    """A name as it is, if it could be a parameter's."""
    return str(name) if re.fullmatch(r"[a-z][a-z_]{0,39}", str(name)) else describe(str(name))


def generate_video_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that says what to show. In a DAG file: ``@task.generate_video(…)``.

    The function returns the prompt, or a dict of the request's arguments (``RETURNABLE``), which take the
    place of those given to the decorator. Everything else is as in ``GenerateVideoOperator``.

    :param python_callable: the function. It runs in the worker, once for each try, before anything is bought.
    :param kwargs: arguments of ``GenerateVideoOperator`` and of Airflow's ``BaseOperator``.
    """
    return make_decorator(_GenerateVideoDecoratedOperator, python_callable, **kwargs)
