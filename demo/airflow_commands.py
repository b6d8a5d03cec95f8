"""Runs commands of Airflow one after the other in one process, because each start of Airflow takes seconds.

Each argument is a command line without its ``airflow``. The exit status of each goes to stdout as a line;
everything that Airflow says goes to stderr. The first failure ends it.
"""

from __future__ import annotations

import os
import shlex
import sys


def main(commands: list[str]) -> int:
    """Run the commands, and return the status of the last."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from airflow.__main__ import main as airflow

    status = 0
    for command in commands:
        sys.argv = ["airflow", *shlex.split(command)]
        try:
            airflow()  # type: ignore[no-untyped-call]
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        reports.write(f"{status}\n")
        if status != 0:
            break
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
