"""Runs commands of Airflow one after the other in one process, because each start of Airflow takes seconds.

Each argument is a command line without its ``airflow``. To stdout goes a JSON list of what each said on stdout
and on stderr, and its exit status.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile


def run(command: str) -> tuple[str, str, int]:
    sys.argv = ["airflow", *shlex.split(command)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status = 0
        try:
            from airflow.__main__ import main  # it logs

            main()  # type: ignore[no-untyped-call]
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for file in (out, err):
            file.seek(0)
        return out.read(), err.read(), status


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as report:
        json.dump([run(command) for command in sys.argv[1:]], report)
