"""The fixture ``codegateway_emulator``, for the tests of DAG authors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .emulator import Emulator


@pytest.fixture
def codegateway_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A fresh local CodeGateway, set as the Airflow connection ``codegateway_default``."""
    from .emulator import Emulator

    with Emulator() as emulator:
        connection = {"conn_type": "codegateway", "host": emulator.url, "password": emulator.api_key}
        monkeypatch.setenv("AIRFLOW_CONN_CODEGATEWAY_DEFAULT", json.dumps(connection))
        yield emulator
