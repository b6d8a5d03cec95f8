"""The three models: what each takes, and how a portable value becomes its own."""

from __future__ import annotations

from airflow_provider_codegateway.models.build import PORTABLE, build_request
from airflow_provider_codegateway.models.known import (
    MAX_PROMPT_CHARACTERS,
    MODELS,
    HailuoRequest,
    SeedanceRequest,
    UnlistedRequest,
    VeoRequest,
)
from airflow_provider_codegateway.models.problems import placeholder
from airflow_provider_codegateway.models.request import MediaField, VideoRequest

__all__ = [
    "MAX_PROMPT_CHARACTERS",
    "MODELS",
    "PORTABLE",
    "HailuoRequest",
    "MediaField",
    "SeedanceRequest",
    "UnlistedRequest",
    "VeoRequest",
    "VideoRequest",
    "build_request",
    "placeholder",
]
