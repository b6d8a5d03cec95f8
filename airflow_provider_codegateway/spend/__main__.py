"""Run the command: ``python -m airflow_provider_codegateway.spend``."""

from __future__ import annotations

import sys

from airflow_provider_codegateway.spend.command import main

if __name__ == "__main__":
    from airflow_provider_codegateway.hooks.command_line import connect_spend

    sys.exit(main(None, connect_spend))
