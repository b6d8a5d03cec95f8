"""An S3 on loopback, for the demo and the tests.

``python -m demo.s3_server`` serves one until it is terminated, and prints its URL.
"""

from __future__ import annotations

import signal
import sys

from airflow_provider_codegateway.emulator.s3_server import s3_server as s3_server


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # before a thread could take them
    with s3_server() as url:
        print(url, flush=True)
        signal.sigwait(stop_signals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
