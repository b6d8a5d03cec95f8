"""An auth manager that knows of DAGs: Airflow's simple one has roles only."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

GRANTS = "CODEGATEWAY_TEST_GRANTS"
"""Names the environment variable: for each user the DAGs that they may read, and what of them they may not."""


class PerDagAuthManager(SimpleAuthManager):
    """Whoever is in the grants reads those DAGs only; everybody else is as their role says."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:
        grants = json.loads(os.environ[GRANTS]).get(user.username)
        if grants is not None:
            # Without a DAG's id: whether there is any, as for a list that Airflow filters.
            dag_ids = grants["dags"] if details is None or details.id is None else [details.id]
            if method != "GET" or not set(dag_ids) & set(grants["dags"]):
                return False
            if access_entity and access_entity.name == grants["not"]:
                return False
        return super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
