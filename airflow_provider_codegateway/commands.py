"""What our commands have in common: they print what was asked for and nothing else, and a failure is one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from airflow_provider_codegateway.exceptions import CodeGatewayError
from airflow_provider_codegateway.s3 import error_words


def run_command(does: Callable[[], int]) -> int:
    """Run a command; the exit status."""
    import botocore.exceptions

    disabled = logging.root.manager.disable
    # Airflow logs to the standard output, where the command's table, CSV or JSON goes.
    logging.disable(logging.WARNING)
    try:
        return does()
    except CodeGatewayError as error:
        print(error.args[0], file=sys.stderr)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        print(f"S3 could not be asked ({error_words(error)}).", file=sys.stderr)
    finally:
        logging.disable(disabled)
    return 1
