"""Run the command: ``python -m airflow_provider_codegateway.ledger``."""

import sys

from airflow_provider_codegateway.ledger.command import main

sys.exit(main())
