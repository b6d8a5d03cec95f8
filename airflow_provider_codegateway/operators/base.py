"""What the operator for one clip and the one for many have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseOperator,
)

from airflow_provider_codegateway import metrics
from airflow_provider_codegateway.clip import NO_RUN, Asker, TaskRun, identities
from airflow_provider_codegateway.exceptions import (
    Bought,
    CodeGatewayError,
    InvalidRequest,
    RenderOutcomeUnknown,
    from_dict,
)
from airflow_provider_codegateway.inputs import hide

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.sdk.definitions.retry_policy import RetryPolicy
    from mypy_boto3_s3.client import S3Client

    from airflow_provider_codegateway.gateway import BlockingCall
    from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook
    from airflow_provider_codegateway.triggers.base import RenderingTrigger

T = TypeVar("T")

_FAILED_DEFERRAL = "__fail__"
"""What Airflow names as the method to resume with, when the trigger timed out or broke."""


class HidesMedia:
    """An attribute that shows no image bytes and no presigned query, also after Airflow rendered it.

    Airflow assigns what it rendered and then stores the attribute for its UI; mapped tasks too.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        # Read on the class, by Airflow's checks of template fields.
        return self if instance is None else getattr(instance, self.name)

    def __set__(self, instance: object, value: Any) -> None:
        copies: dict[int, int] = {}
        setattr(instance, self.name, hide(value, keep_templates=True, copies=copies))
        setattr(instance, f"{self.name}_copies", copies)

    def copies(self, instance: object) -> dict[int, int]:
        """The ``id`` of each container in the attribute, with that of the one that was assigned."""
        copies: dict[int, int] = getattr(instance, f"{self.name}_copies", {})
        return copies


class RenderingOperator(BaseOperator):
    """Connections, templates, deferral and kill of an operator that buys renders.

    Subclasses have ``model``, ``codegateway_conn_id``, ``aws_conn_id`` and ``deferrable``.
    """

    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json", "fallbacks": "json"}

    model: str | None
    codegateway_conn_id: str
    aws_conn_id: str | None
    deferrable: bool
    image = HidesMedia()
    parameters = HidesMedia()
    fallbacks = HidesMedia()
    returns: ClassVar[str]
    """What the task returns, and where the rest is."""
    _call: BlockingCall | None = None
    _is_killed = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.refuse_multiple_outputs(getattr(self, "multiple_outputs", False))
        # Here rather than in kwargs, where `default_args` would not be seen; mapped tasks pass here too.
        if getattr(self, "retry_policy", None) is None:
            self.retry_policy = _default_retry_policy()

    @classmethod
    def refuse_multiple_outputs(cls, value: object) -> None:
        """Airflow would fail the task after the purchase, on every try.

        :raises InvalidRequest: they are wanted.
        """
        if value:
            raise InvalidRequest(
                f"multiple_outputs=True needs a task that returns a dict, and this one returns {cls.returns}. Leave it "
                "out."
            )

    @cached_property
    def hook(self) -> CodeGatewayVideoHook:
        """The hook for ``codegateway_conn_id``."""
        from airflow_provider_codegateway.hooks.video import CodeGatewayVideoHook

        return CodeGatewayVideoHook(self.codegateway_conn_id)

    @property
    def _s3(self) -> S3Client:
        from airflow_provider_codegateway.hooks.storage import s3_client

        return s3_client(self.aws_conn_id)

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: Any,
        seen_oids: set[int],
    ) -> None:
        # Airflow knows by its id what came of mapping: data, whose braces are no template. So are our copies of it.
        for name in template_fields:
            if isinstance(hides := getattr(type(parent), name, None), HidesMedia):
                copies = hides.copies(parent)
                seen_oids |= {copy for copy, original in copies.items() if original in seen_oids}
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)

    def execute(self, context: Context) -> str:
        """Render what is missing, and return where it is: a clip's key, or a manifest's URI.

        :param context: Airflow's. Without a task instance in it, nothing is deferred, and no XCom is pushed.
        """
        try:
            return self._run(context or {})
        except CodeGatewayError as error:
            self._report(error, context or {})
            raise
        except AirflowTaskTimeout as error:
            unknown = self._unknown_outcome(f"The task ran out of time ({error}).", context or {})
            self._report(unknown, context or {})
            raise

    def execute_complete(
        self, context: Context, event: dict[str, Any], deferred: dict[str, Any] | None = None
    ) -> str:
        """Take over what the trigger brought.

        :param deferred: what this task knew when it deferred.
        :raises CodeGatewayError: the very error that the trigger met, or that of what it brought.
        """
        self._resume(deferred or {})
        try:
            match event:
                case {"status": "failed", "error": dict(error)}:
                    raise from_dict(error)
            return self._take_over(context, event, deferred or {})
        except CodeGatewayError as error:
            self._report(error, context)
            raise

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after a deferral; of one that failed, say whether money was spent, or where to look.

        :raises RenderOutcomeUnknown: the deferral took longer than ``execution_timeout``, or its trigger broke.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            if next_method != _FAILED_DEFERRAL:
                raise
            reason = f"The deferral ended without a result ({type(error).__name__}: {error})."
            unknown = self._unknown_outcome(reason, context)
            self._report(unknown, context)
            raise unknown from error

    def _run(self, context: Context) -> str:
        raise NotImplementedError

    def _resume(self, deferred: dict[str, Any]) -> None:
        """Take up what this task knew when it deferred."""
        raise NotImplementedError

    def _take_over(self, context: Context, event: dict[str, Any], deferred: dict[str, Any]) -> str:
        """Hand over what an event brought that is no error."""
        raise NotImplementedError

    def _not_understood(self, context: Context) -> RenderOutcomeUnknown:
        # Triggerer and worker may run different versions while they are upgraded.
        return self._unknown_outcome(
            "The triggerer runs another version of this provider, and what it reported is not understood.",
            context,
        )

    def _unknown_outcome(self, reason: str, context: Context) -> RenderOutcomeUnknown:
        """What became of renders of which nobody reported anything of use."""
        raise NotImplementedError

    def _report(self, error: CodeGatewayError, context: Context) -> None:
        """Count and log what a failure cost, and leave it for the task's page. The rest of it Airflow logs."""
        if error.bought is Bought.NO:
            metrics.failed(error, self.model)
            if getattr(context.get("ti"), "try_number", 1) > 1:
                self._tell_what_was_bought_before(error, context)
        self.log.error("%s", error.money)
        told: dict[str, Any] = {
            "class": type(error).__name__,
            "message": error.args[0],
            "bought": error.money,
            **self._place_of_failure(),
        }
        if error.cost is not None:
            told["cost"] = dict(error.cost)
        try:
            self._push("clip_error", told, context)
        except Exception as failure:  # the error itself matters more
            self.log.warning("The XCom 'clip_error' could not be written: %s", type(failure).__name__)
        if isinstance(error, AirflowFailException):
            # The author has something to change. The message says what, and our frames would only hide it.
            error.__suppress_context__ = True
            error.__traceback__ = None
            if error.__cause__ is not None:
                error.__cause__.__traceback__ = None

    def _place_of_failure(self) -> dict[str, str]:
        """Where the clip was to go, by which a failure of a mapped task is told from the others."""
        return {}

    def _tell_what_was_bought_before(self, error: CodeGatewayError, context: Context) -> None:
        """Make an error that comes before the purchase say what earlier tries bought."""
        raise NotImplementedError

    def _push(self, key: str, value: dict[str, Any], context: Context) -> None:
        if self.do_xcom_push and "ti" in context:
            context["ti"].xcom_push(key=key, value=value)

    def _push_estimate(self, estimate: dict[str, Any], words: str, context: Context) -> NoReturn:
        """Push it and skip: what comes after needs a clip, and an asset event would announce one."""
        if "ti" in context:
            context["ti"].xcom_push(key="estimate", value=estimate)
        raise AirflowSkipException(f"dry_run=True: {words}. Nothing was bought.")

    def _defer_to(self, trigger: RenderingTrigger, deferred: dict[str, Any]) -> NoReturn:
        """
        :param deferred: plain values for the process that resumes. Airflow stores them, so they must hold nothing
            secret.
        """
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={"deferred": deferred},
            timeout=self.execution_timeout,
        )
        raise AssertionError("defer does not return")

    def _render_here(self, work: Callable[[], Coroutine[Any, Any, T]], what: str) -> T:
        """Render in this process.

        :param what: was not done yet, should the task have been stopped.
        :raises asyncio.CancelledError: the task was stopped from outside.
        """
        from airflow_provider_codegateway.gateway import BlockingCall

        if self.deferrable:
            self.log.info("Rendering in this process: only a task of its own in a DAG run can be deferred.")
        self._call = BlockingCall()
        self._require_not_killed(what)
        return self._call.run(work())

    def _can_resume(self, context: Context) -> bool:
        """Whether to defer: Airflow resumes the task that it runs, and no operator inside of another one."""
        instance: Any = context.get("ti")
        if not self.deferrable or instance is None:
            return False
        running = getattr(instance, "task", self)
        is_ours = isinstance(running, RenderingOperator) or getattr(running, "is_mapped", False)
        return is_ours and running.task_id == self.task_id

    def _require_not_killed(self, what: str) -> None:
        # Airflow 3 calls `on_kill` in a signal handler and goes on, also while there is nothing to cancel.
        if self._is_killed:
            raise RenderOutcomeUnknown(f"The task was stopped from outside before {what}.", bought=Bought.NO)

    def on_kill(self) -> None:
        """Close the connections of running renders. They may be billed all the same; their ledgers say so."""
        self._is_killed = True
        if self._call is not None and self._call.cancel():
            self.log.warning(
                "Stopped. A render that was under way may still be billed: the gateway cannot cancel it."
            )


def _default_retry_policy() -> RetryPolicy | None:
    """The retry policy of a task whose author sets none; None where Airflow knows of no policies."""
    try:
        from airflow_provider_codegateway.retry_policy import CodeGatewayRetryPolicy
    except ImportError:  # Airflow before 3.3 has no retry policies
        return None
    return CodeGatewayRetryPolicy()


def asker_of(context: Context) -> Asker:
    """Who asks: the task instance that is running."""
    instance: Any = context.get("ti")
    values = {name: getattr(instance, name, None) for name in ("dag_id", "task_id", "run_id")}
    index = getattr(instance, "map_index", None)
    task = TaskRun(
        **{name: value for name, value in values.items() if isinstance(value, str)},
        map_index=index if isinstance(index, int) else None,
    )
    if task.dag_id is None or task.run_id is None:
        return Asker(requester=NO_RUN, task=task)
    requester, former = identities(task.dag_id, instance.task_id, task.run_id, instance.map_index)
    return Asker(requester=requester, former_requester=former, task=task)
