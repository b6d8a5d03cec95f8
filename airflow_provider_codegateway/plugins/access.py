"""Who may see what: Airflow's own auth manager decides, for each DAG, on its XComs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.configuration import conf
from airflow.models.dag import DagModel

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
    from sqlalchemy.orm import Session


def may_read_clips(user: BaseUser, dag_id: str, session: Session) -> bool:
    """Whether the user may read the DAG, and its XComs."""
    auth_manager: Any = get_auth_manager()
    multi_team = conf.getboolean("core", "multi_team", fallback=False)
    details = DagDetails(
        id=dag_id, team_name=DagModel.get_team_name(dag_id, session=session) if multi_team else None
    )
    # A manager may judge by the entity alone: so both are asked.
    return all(
        auth_manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)
        for entity in (None, DagAccessEntity.XCOM)
    )


def readable_dags(user: BaseUser, dag_ids: Collection[str], session: Session) -> list[str]:
    """Those of the DAGs whose clips the user may see, in order."""
    return sorted(dag_id for dag_id in dag_ids if may_read_clips(user, dag_id, session))
