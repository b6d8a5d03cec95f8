"""``codegateway-emulator``: a local CodeGateway until it is interrupted, and the faults of one that runs."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .emulator import DEFAULT_API_KEY, Emulator
from .faults import ClipFault, Fault, catalogue, fault_by_name

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEFAULT_PORT = 8787


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    run = {"fail": _fail, "clear": _clear, "faults": _list_faults}.get(options.command, _serve)
    return run(options)


def _serve(options: argparse.Namespace) -> int:
    """Run an emulator until SIGTERM or SIGINT."""
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
        certificate=options.certificate,
    )
    try:
        emulator.start()
    except (OSError, ModuleNotFoundError) as problem:
        return _refuse(problem)
    try:
        connection = {"conn_type": "codegateway", "host": emulator.url, "password": emulator.api_key}
        print(f"CodeGateway emulator on {emulator.url}, key {emulator.api_key}")
        print(f"AIRFLOW_CONN_CODEGATEWAY_DEFAULT='{json.dumps(connection)}'", flush=True)
        signal.sigwait(stop_signals)
    finally:
        emulator.stop()
    return 0


def _fail(options: argparse.Namespace) -> int:
    """Queue a fault at an emulator that runs."""
    try:
        fault = fault_by_name(options.fault, **dict(map(_read_argument, options.arguments)))
    except ValueError as problem:
        return _refuse(problem)

    def send(emulator: Any) -> None:
        emulator.fail_next(fault, times=options.times or None, model=options.model)

    return _control(options, send)


def _clear(options: argparse.Namespace) -> int:
    """Clear the faults of an emulator that runs."""
    return _control(options, lambda emulator: emulator.clear_faults())


def _control(options: argparse.Namespace, action: Any) -> int:
    import httpx

    from .remote import RemoteEmulator

    emulator = RemoteEmulator(options.url, options.certificate)
    try:
        action(emulator)
    except (ValueError, httpx.HTTPError) as problem:
        return _refuse(f"{options.url}: {problem}")
    finally:
        emulator.close()
    return 0


def _list_faults(_: argparse.Namespace) -> int:
    """Print every fault with its parameters."""
    for name, signature in catalogue().items():
        kind = ClipFault if name.startswith("clip.") else Fault
        summary = (getattr(kind, name.removeprefix("clip.")).__doc__ or "").partition("\n")[0]
        print(" ".join([name, *(f"{parameter}=" for parameter in signature.parameters)]))
        print(f"    {summary}")
    return 0


def _read_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"write {text!r} as name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _refuse(problem: object) -> int:
    print(f"codegateway-emulator: {problem}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    shows_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="codegateway-emulator",
        description="A local CodeGateway: real MP4s, no key, no spend.",
        formatter_class=shows_defaults,
    )
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="address to listen on")
    option("--port", type=int, default=_DEFAULT_PORT, help="0 for any free one")
    option("--api-key", default=DEFAULT_API_KEY, help="the key it accepts")
    option("--render-seconds", type=float, default=0.0, help="least time a render takes")
    option("--link-lifetime", type=float, default=3600.0, help="seconds until a clip's link expires")
    option("--certificate", help="PEM file with its key: speak TLS")
    commands = parser.add_subparsers(dest="command", title="commands for a running emulator")
    fail = commands.add_parser("fail", help="queue a fault", formatter_class=shows_defaults)
    fail.add_argument("fault", help="its name, as `faults` lists it")
    fail.add_argument("arguments", nargs="*", help="its parameters, as name=value")
    fail.add_argument("--times", type=int, default=1, help="how often it strikes; 0: until cleared")
    fail.add_argument("--model", help="strike only calls and clips of this model")
    clear = commands.add_parser(
        "clear", help="forget the faults that are queued", formatter_class=shows_defaults
    )
    for command in (fail, clear):
        command.add_argument("--url", default=f"http://127.0.0.1:{_DEFAULT_PORT}", help="where it runs")
        command.add_argument("--certificate", help="PEM file of its certificate")
    commands.add_parser("faults", help="list every fault")
    return parser


def _raise_file_limit() -> None:
    """A call in progress is an open file, and the usual soft limit of 1,024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
