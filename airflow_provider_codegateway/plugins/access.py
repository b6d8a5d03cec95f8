"""Who may see what: Airflow's own auth manager decides, for each DAG, on what the pages show of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.configuration import conf
from airflow.models.dag import DagModel

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from sqlalchemy.orm import Session


# The facts of a clip are an XCom; a task's state, tries and rendered arguments are of its task instance.
_SHOWN = (DagAccessEntity.XCOM, DagAccessEntity.TASK_INSTANCE)


def may_read_clips(user: BaseUser, dag_id: str, session: Session) -> bool:
    """Whether the user may read the DAG, its XComs and its task instances."""
    return bool(readable_dags(user, [dag_id], session))


def readable_dags(user: BaseUser, dag_ids: Collection[str], session: Session) -> list[str]:
    """Those of the DAGs whose clips the user may see, in order."""
    auth_manager: Any = get_auth_manager()
    multi_team = conf.getboolean("core", "multi_team", fallback=False)
    by_team: dict[str | None, set[str]] = defaultdict(set)
    for dag_id in dag_ids:
        by_team[DagModel.get_team_name(dag_id, session=session) if multi_team else None].add(dag_id)
    readable = []
    for team, ids in by_team.items():
        # A manager may judge by the entity alone: so the DAG itself is asked for as well, all at once.
        of_team = {"team_name": team} if multi_team else {}
        for dag_id in auth_manager.filter_authorized_dag_ids(dag_ids=ids, user=user, method="GET", **of_team):
            details = DagDetails(id=dag_id, team_name=team)
            if all(
                auth_manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)
                for entity in _SHOWN
            ):
                readable.append(dag_id)
    return sorted(readable)
