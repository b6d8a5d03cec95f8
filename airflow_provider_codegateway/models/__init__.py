"""The three models: what each takes, and how a portable value becomes its own."""

from __future__ import annotations

from airflow_provider_codegateway.models.build import PORTABLE, TERMS, build_request
from airflow_provider_codegateway.models.chain import Fallbacks, build_chain, chain_fingerprint
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
    "TERMS",
    "Fallbacks",
    "HailuoRequest",
    "MediaField",
    "SeedanceRequest",
    "UnlistedRequest",
    "VeoRequest",
    "VideoRequest",
    "build_chain",
    "build_request",
    "chain_fingerprint",
    "placeholder",
]
