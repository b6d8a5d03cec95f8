"""CodeGateway: its settings, the one POST, and the class of every outcome."""

from __future__ import annotations

from airflow_provider_codegateway.gateway.answers import Answer, Receipt, link_over_https, read_receipt
from airflow_provider_codegateway.gateway.blocking import BlockingCall
from airflow_provider_codegateway.gateway.client import Buyer, Gateway, LoadContent, StoppedUnsent
from airflow_provider_codegateway.gateway.fallback import FALLBACK_ON, error_of_chain, reason_to_fall_back
from airflow_provider_codegateway.gateway.settings import GatewaySettings, checked_settings

__all__ = [
    "FALLBACK_ON",
    "Answer",
    "BlockingCall",
    "Buyer",
    "Gateway",
    "GatewaySettings",
    "LoadContent",
    "Receipt",
    "StoppedUnsent",
    "checked_settings",
    "error_of_chain",
    "link_over_https",
    "read_receipt",
    "reason_to_fall_back",
]
