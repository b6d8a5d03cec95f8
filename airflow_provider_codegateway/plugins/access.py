"""Who may see what: Airflow's own auth manager decides, for each DAG, on what the pages show of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from itertools import chain
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
    readable: list[str] = []
    for team, of_team in _by_team(dag_ids, session).items():
        # A manager may judge by the entity alone: so the DAG itself is asked for as well, all at once.
        named = {"team_name": team} if team else {}
        known = auth_manager.filter_authorized_dag_ids(dag_ids=of_team, user=user, method="GET", **named)
        wanted = {
            dag_id: [
                {
                    "method": "GET",
                    "access_entity": entity,
                    "details": DagDetails(id=dag_id, team_name=team),
                }
                for entity in _SHOWN
            ]
            for dag_id in known
        }
        # All at once first: some managers ask a server, and then need one call.
        if auth_manager.batch_is_authorized_dag([*chain(*wanted.values())], user=user):
            readable += wanted
        else:
            readable += [
                dag_id
                for dag_id, requests in wanted.items()
                if auth_manager.batch_is_authorized_dag(requests, user=user)
            ]
    return sorted(readable)


def _by_team(dag_ids: Collection[str], session: Session) -> dict[str | None, set[str]]:
    teams: dict[str, str | None] = {}
    if conf.getboolean("core", "multi_team", fallback=False):
        teams = DagModel.get_dag_id_to_team_name_mapping(list(dag_ids), session=session)
    by_team: dict[str | None, set[str]] = defaultdict(set)
    for dag_id in dag_ids:
        by_team[teams.get(dag_id)].add(dag_id)
    return by_team
