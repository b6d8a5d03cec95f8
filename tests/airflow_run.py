"""Runs a DAG with Airflow's own task runner, in this process, and says what came of it.

All that the tests must know of Airflow's versions is here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, select

if TYPE_CHECKING:
    from datetime import datetime

    from airflow.dag_processing.dagbag import DagBag
    from airflow.providers.common.compat.sdk import DAG

AIRFLOW = tuple(int(number) for number in version("apache-airflow").split(".")[:2])
"""Airflow's minor version, such as ``(3, 1)``."""


def execute_in_a_thread(operator: Any, context: Any) -> Any:
    """``operator.execute``, in another thread than the one that has loaded Airflow.

    Airflow 2 remembers for each thread who calls it, and makes room for that in the first one alone.
    """
    if AIRFLOW < (3, 0):
        import_module("airflow.models.baseoperator").ExecutorSafeguard._sentinel.callers = {}
    return operator.execute(context)


@dataclass
class TaskResult:
    state: str | None
    rendered: dict[str, Any] = field(default_factory=dict)
    xcoms: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunResult:
    state: str
    tasks: dict[tuple[str, int], TaskResult]

    def __getitem__(self, task_id: str) -> TaskResult:
        return self.tasks[task_id, -1]


def initialise_database() -> None:
    from airflow.configuration import AIRFLOW_HOME
    from airflow.utils.db import initdb

    Path(AIRFLOW_HOME).mkdir(parents=True, exist_ok=True)
    initdb()
    if AIRFLOW >= (3, 0):
        from airflow.dag_processing.bundles.manager import DagBundlesManager

        DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]
    if (3, 0) <= AIRFLOW < (3, 3):
        _make_task_api_once()
    if AIRFLOW == (3, 0):
        _log_as_workers_do()


def _make_task_api_once() -> None:
    """As Airflow 3.3 does: older ones build the API that tasks call anew for each task, which takes seconds."""
    from airflow.sdk.execution_time import supervisor

    supervisor.in_process_api_server = cache(supervisor.in_process_api_server)


def _log_as_workers_do() -> None:
    """As Airflow 3.1 does: before, ``dag.test`` prints debug messages, and the local variables of what fails."""
    import structlog

    *processors, _ = structlog.get_config()["processors"]
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        processors=[
            *processors,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )


def load_dags(folder: Path | str) -> DagBag:
    """The DAGs in a folder, as Airflow's DAG processor reads them."""
    if AIRFLOW >= (3, 2):
        from airflow.dag_processing.dagbag import DagBag
    else:
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef]
    return DagBag(dag_folder=folder)


def run_dag(dag: DAG, *, at: datetime | None = None, **kwargs: Any) -> RunResult:
    """One run of ``dag``, by ``dag.test``.

    :param at: the run's date. A second run of the same date is another try of the first.
    """
    if AIRFLOW >= (3, 0):  # it runs only DAGs (from 3.1), and updates only assets, that are in the database
        bag = load_dags(tempfile.mkdtemp())
        bag.bag_dag(dag=dag)
        _sync_to_database(bag)
    if at is not None:
        kwargs.update({"logical_date": at, "run_after": at} if AIRFLOW >= (3, 0) else {"execution_date": at})
    run = dag.test(**kwargs)
    return _result(dag.dag_id, run.run_id, str(run.state))


def _sync_to_database(bag: DagBag) -> None:
    if AIRFLOW == (3, 0):
        from airflow.models.dag import DAG as Stored

        Stored.bulk_write_to_db("dags-folder", None, [Stored.from_sdk_dag(dag) for dag in bag.dags.values()])  # noqa: AIR311
        return
    if AIRFLOW >= (3, 2):
        from airflow.dag_processing.dagbag import sync_bag_to_db
    else:
        from airflow.models.dagbag import sync_bag_to_db  # type: ignore[no-redef]
    sync_bag_to_db(bag, "dags-folder", None)


def _result(dag_id: str, run_id: str, state: str) -> RunResult:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Rendered
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    if AIRFLOW >= (3, 4):
        from airflow.models.xcom import XComModelV2 as XComModel
    elif AIRFLOW >= (3, 0):
        from airflow.models.xcom import XComModel
    else:
        from airflow.models.xcom import XCom as XComModel  # type: ignore[no-redef]

    def of_run(model: Any) -> Any:
        """Rows of a table with their task's name, map index and state."""
        names = TaskInstance.task_id, TaskInstance.map_index
        if model is TaskInstance:
            query = select(*names, model)
        elif AIRFLOW >= (3, 4):
            query = select(*names, model).join(TaskInstance, model.task_instance_id == TaskInstance.id)
        else:
            columns = "dag_id", "task_id", "run_id", "map_index"
            same = [getattr(model, name) == getattr(TaskInstance, name) for name in columns]
            query = select(*names, model).join(TaskInstance, and_(*same))
        return session.execute(query.where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id))

    with create_session() as session:
        tasks = {
            (task_id, index): TaskResult(task.state and str(task.state))
            for task_id, index, task in of_run(TaskInstance)
        }
        for task_id, index, rendered in of_run(Rendered):
            tasks[task_id, index].rendered = rendered.rendered_fields
        for task_id, index, xcom in of_run(XComModel):
            tasks[task_id, index].xcoms[xcom.key] = xcom.value
    return RunResult(state, tasks)
