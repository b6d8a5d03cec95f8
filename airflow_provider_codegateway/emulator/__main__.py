"""``codegateway-emulator``: a local CodeGateway until it is interrupted."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from .emulator import DEFAULT_API_KEY, Emulator

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an emulator until SIGTERM or SIGINT."""
    options = _parser().parse_args(arguments)
    stop_signals = {signal.SIGTERM, signal.SIGINT}
    # Before any thread starts, so that none of them takes the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _raise_file_limit()
    emulator = Emulator(
        options.port,
        options.api_key,
        options.render_seconds,
        options.link_lifetime,
        host=options.host,
    )
    try:
        emulator.start()
    except (OSError, ModuleNotFoundError) as problem:
        print(f"codegateway-emulator: {problem}", file=sys.stderr)
        return 1
    try:
        connection = {"conn_type": "codegateway", "host": emulator.url, "password": emulator.api_key}
        print(f"CodeGateway emulator on {emulator.url}, key {emulator.api_key}")
        print(f"AIRFLOW_CONN_CODEGATEWAY_DEFAULT='{json.dumps(connection)}'", flush=True)
        signal.sigwait(stop_signals)
    finally:
        emulator.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codegateway-emulator",
        description="A local CodeGateway: real MP4s, no key, no spend.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="address to listen on")
    option("--port", type=int, default=8787, help="0 for any free one")
    option("--api-key", default=DEFAULT_API_KEY, help="the key it accepts")
    option("--render-seconds", type=float, default=0.0, help="least time a render takes")
    option("--link-lifetime", type=float, default=3600.0, help="seconds until a clip's link expires")
    return parser


def _raise_file_limit() -> None:
    """A call in progress is an open file, and the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
