"""``python -m demo run``: the example DAGs and their clips. ``python -m demo up``: a whole Airflow."""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, NoReturn

from demo.clips import WrongClip
from demo.run import run
from demo.sandbox import PROJECT, Sandbox, SandboxError
from demo.up import serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, or serve Airflow until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("run", help="run the example DAGs and check their clips")
    up = commands.add_parser("up", help="serve Airflow with its UI until interrupted")
    once.add_argument("--render-seconds", type=float, default=2.0, help="least time of a render")
    up.add_argument("--render-seconds", type=float, default=10.0, help="least time of a render")
    up.add_argument("--port", type=int, default=8080, help="of the UI; a free one if it is taken")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    home = PROJECT / ".airflow" / ("demo" if options.command == "run" else "up")
    sandbox = Sandbox(home, render_seconds=options.render_seconds)
    try:
        with sandbox:
            if options.command == "run":
                run(sandbox)
            else:
                serve(sandbox, preferred_port=options.port)
    except (SandboxError, WrongClip) as problem:
        log = sandbox.log.relative_to(PROJECT)
        print(f"\nFAILED: {problem}\n\nThe end of {log}:\n", file=sys.stderr)
        print(textwrap.indent(sandbox.log_tail(), "    "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped, with everything that was started.", file=sys.stderr)
        return 0 if options.command == "up" else 130
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # Once is enough: a second Ctrl-C would leave processes behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    print("\nStopping.", file=sys.stderr, flush=True)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
