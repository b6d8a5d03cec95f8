"""Runs one task as Airflow would, without its database: for the tests of DAG authors.

Airflow is imported when a task is run, not before.
"""

from __future__ import annotations

import asyncio
import copy
import traceback
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_RESULT = "return_value"


@dataclass(frozen=True)
class TaskRun:
    """What came of a task."""

    result: Any
    """What it returned."""
    xcoms: Mapping[str, Any]
    """What it pushed, by key; its result is ``return_value``."""
    events: tuple[Any, ...]
    """What its triggers brought, one for each deferral; empty where it never deferred."""
    task: Any
    """The operator with its fields rendered, as it ended."""
    context: Mapping[str, Any]


@dataclass
class _TaskInstance:
    """As much of a task instance as operators and templates use."""

    task: Any
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int
    upstream: Mapping[str, Any]
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(
        self,
        task_ids: Any = None,
        dag_id: str | None = None,
        key: str = _RESULT,
        default: Any = None,
        **_: Any,
    ) -> Any:
        if task_ids is None or isinstance(task_ids, str):
            return self._pull(task_ids or self.task_id, key, default)
        return [self._pull(task_id, key, default) for task_id in task_ids]

    def _pull(self, task_id: str, key: str, default: Any) -> Any:
        if task_id == self.task_id:
            return self.pushed.get(key, default)
        name = task_id if key == _RESULT else f"{task_id}.{key}"
        return self.upstream.get(name, default)


def run_task(
    operator: Any,
    *,
    params: Mapping[str, Any] | None = None,
    conf: Mapping[str, Any] | None = None,
    xcoms: Mapping[str, Any] | None = None,
    at: datetime | None = None,
    run_id: str = "test",
    map_index: int = -1,
    try_number: int = 1,
) -> TaskRun:
    """Render a task's templates and execute it; if it defers, run its trigger and resume it, to the end.

    The operator that is given stays as it is: each step works on a copy, as in Airflow, where each is another process.

    :param operator: of a DAG (``dag.get_task("render")``), or on its own. Of a mapped one name the `map_index`.
    :param params: in place of the defaults of the DAG's params.
    :param conf: ``dag_run.conf``.
    :param xcoms: what other tasks returned, by task id; what they pushed under a key, by ``task_id.key``.
    :param at: the logical date; by default now.
    :raises Exception: what the task raised.
    """
    at = at or datetime.now(UTC)
    dag = operator.get_dag()
    instance = _TaskInstance(
        operator,
        dag.dag_id if dag is not None else "test",
        operator.task_id,
        run_id,
        map_index,
        try_number,
        xcoms or {},
    )
    events: list[Any] = []
    context = _context(operator, dag, instance, params or {}, conf or {}, at)
    method, kwargs = "execute", dict[str, Any]()
    while True:
        task = _rendered(operator, context)
        deferral = None
        try:
            result = _step(task, method, kwargs, context)
        except _deferred_class() as raised:
            deferral = raised
        if deferral is None:
            break
        method, kwargs = _bring_event(deferral, events)
    if result is not None and getattr(task, "do_xcom_push", True):
        instance.xcom_push(_RESULT, result)
    return TaskRun(result, instance.pushed, tuple(events), task, context)


def _rendered(operator: Any, context: dict[str, Any]) -> Any:
    """A copy of the operator, with its fields rendered; of a mapped operator one of its tasks."""
    task = copy.copy(operator)
    context["task"] = context["ti"].task = task
    with _session_of_airflow_2():
        task.render_template_fields(context)
    return context["task"]


@contextmanager
def _session_of_airflow_2() -> Iterator[None]:
    """Airflow 2 opens a session to render a mapped task, and keeps it: a later ``dag.test`` would not end."""
    if find_spec("airflow.sdk"):
        yield
        return
    session = import_module("airflow.settings").Session()
    with import_module("airflow.utils.task_instance_session").set_current_task_instance_session(session):
        yield


def _step(task: Any, method: str, kwargs: dict[str, Any], context: dict[str, Any]) -> Any:
    set_current_context = _first_of(
        "set_current_context", "airflow.sdk.execution_time.context", "airflow.models.taskinstance"
    )
    with set_current_context(context):
        if method == "execute":
            return task.execute(context)
        return task.resume_execution(method, kwargs, context)


def _bring_event(deferral: Any, events: list[Any]) -> tuple[str, dict[str, Any]]:
    """Run the trigger to its first event: which method the task resumes with, and what it gets."""
    path, arguments = deferral.trigger.serialize()
    module, _, name = path.rpartition(".")
    trigger = getattr(import_module(module), name)(**copy.deepcopy(arguments))  # as a triggerer makes it
    timeout = None if deferral.timeout is None else deferral.timeout.total_seconds()
    try:
        event = asyncio.run(_first_event(trigger, timeout))
    except TimeoutError:
        return "__fail__", {"error": "Trigger timeout"}
    except Exception as problem:
        return "__fail__", {"error": "Trigger failure", "traceback": traceback.format_exception(problem)}
    events.append(event)
    return deferral.method_name, {**(deferral.kwargs or {}), "event": event}


async def _first_event(trigger: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
    try:
        async with asyncio.timeout(timeout), aclosing(trigger.run()) as events:
            async for event in events:
                return event.payload
    finally:
        await trigger.cleanup()
    raise RuntimeError("The trigger ended without an event.")


def _context(
    operator: Any,
    dag: Any,
    instance: _TaskInstance,
    params: Mapping[str, Any],
    conf: Mapping[str, Any],
    at: datetime,
) -> dict[str, Any]:
    declared = getattr(dag, "params", None) or {}
    merged = {name: declared[name] for name in declared if name not in params} | dict(params)
    outlet_events = _first_of(
        "OutletEventAccessors", "airflow.sdk.execution_time.context", "airflow.utils.context"
    )
    dag_run = SimpleNamespace(
        dag_id=instance.dag_id,
        run_id=instance.run_id,
        conf=dict(conf),
        logical_date=at,
        run_type="manual",
        data_interval_start=at,
        data_interval_end=at,
    )
    return {
        "ti": instance,
        "task_instance": instance,
        "task": operator,
        "dag": dag,
        "dag_run": dag_run,
        "run_id": instance.run_id,
        "params": merged,
        "logical_date": at,
        "data_interval_start": at,
        "data_interval_end": at,
        "ds": f"{at:%Y-%m-%d}",
        "ds_nodash": f"{at:%Y%m%d}",
        "ts": at.isoformat(),
        "ts_nodash": f"{at:%Y%m%dT%H%M%S}",
        "task_instance_key_str": f"{instance.dag_id}__{instance.task_id}__{at:%Y%m%d}",
        "outlet_events": outlet_events(),
        "expanded_ti_count": None,
    }


def _deferred_class() -> type[BaseException]:
    deferred: type[BaseException] = _first_of("TaskDeferred", "airflow.sdk.exceptions", "airflow.exceptions")
    return deferred


def _first_of(name: str, *modules: str) -> Any:
    """Something of Airflow's, which has moved between its versions."""
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"This version of Airflow has no {name} in {' or '.join(modules)}.")
