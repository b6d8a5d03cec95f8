"""What renders cost: price list, budgets, and the journal of everything that was or may have been bought."""

from __future__ import annotations

from airflow_provider_codegateway.spend.account import Account
from airflow_provider_codegateway.spend.prices import Cost, parse_amount
from airflow_provider_codegateway.spend.settings import SpendSettings, parse_spend, read_spend

__all__ = ["Account", "Cost", "SpendSettings", "parse_amount", "parse_spend", "read_spend"]
