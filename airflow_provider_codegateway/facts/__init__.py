"""What a stored clip is: whole or not, and what it measures.

The index of an MP4 is read as the clip passes by on its way to S3: that costs no request. Only a clip that was stored
without facts in its metadata is read by ranges, when it is found again.
"""

from __future__ import annotations

from airflow_provider_codegateway.facts.beside import Beside, put_beside
from airflow_provider_codegateway.facts.compare import differences, wanted_of
from airflow_provider_codegateway.facts.container import Container, Ending, Verdict
from airflow_provider_codegateway.facts.stored import read_stored_facts

__all__ = [
    "Beside",
    "Container",
    "Ending",
    "Verdict",
    "differences",
    "put_beside",
    "read_stored_facts",
    "wanted_of",
]
