"""Runs a DAG with Airflow's own task runner, in this process, and says what came of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

if TYPE_CHECKING:
    from airflow.sdk import DAG


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
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]


def run_dag(dag: DAG, **kwargs: Any) -> RunResult:
    """One run of ``dag``, by ``dag.test``."""
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    bag = DagBag(dag_folder=tempfile.mkdtemp())
    bag.bag_dag(dag=dag)
    sync_bag_to_db(bag, "dags-folder", None)
    run = dag.test(**kwargs)
    return _result(dag.dag_id, run.run_id, str(run.state))


def _result(dag_id: str, run_id: str, state: str) -> RunResult:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Rendered
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    def of_run(model: Any) -> Any:
        return session.scalars(select(model).where(model.dag_id == dag_id, model.run_id == run_id))

    with create_session() as session:
        tasks = {
            (task.task_id, task.map_index): TaskResult(task.state and str(task.state))
            for task in of_run(TaskInstance)
        }
        for rendered in of_run(Rendered):
            tasks[rendered.task_id, rendered.map_index].rendered = rendered.rendered_fields
        for xcom in of_run(XComModel):
            tasks[xcom.task_id, xcom.map_index].xcoms[xcom.key] = xcom.value
    return RunResult(state, tasks)
