"""A whole Airflow with its UI, wired to the emulator and to S3, until it is interrupted."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

from demo.airflow_server import AirflowServer
from demo.sandbox import BUCKET, PROJECT, Sandbox

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn


_FAIL = ".venv/bin/codegateway-emulator fail status code=400"


def _settings_file(sandbox: Sandbox) -> Path:
    """What a shell needs for commands of this Airflow."""
    settings = {name: value for name, value in sandbox.environment.items() if name.startswith("AIRFLOW_")}
    file = sandbox.home / "settings.sh"
    file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()))
    return file


def serve(sandbox: Sandbox, *, preferred_port: int) -> NoReturn:
    """Start Airflow, say where it is, and wait.

    :raises SandboxError: a part of Airflow did not start, or stopped.
    """
    print("Starting Airflow; its log is in", sandbox.log.relative_to(PROJECT), flush=True)
    with AirflowServer(sandbox, preferred_port=preferred_port) as airflow:
        print(f"\nAirflow     {airflow.url}  (no password; the example DAGs are there: trigger one)")
        print(f"Clips       {sandbox.s3_endpoint}/{BUCKET}/<key>")
        print(f"Emulator    {sandbox.emulator_url}")
        print(f"DAGs        {PROJECT / 'example_dags'}: put yours there")
        print(
            "Connections codegateway_default and aws_default are environment variables: the UI does not list them"
        )
        print(f"To fail     {_FAIL} --url {sandbox.emulator_url}, then trigger codegateway_first_clip")
        print(
            "Why it did  Browse > CodeGateway clips: the reason, and what was paid; prices here are made up"
        )
        print(f"Commands    . {_settings_file(sandbox).relative_to(PROJECT)}; .venv/bin/airflow dags list")
        print(
            "\nThe next start begins from nothing: only the DAGs stay. Ctrl-C stops everything.", flush=True
        )
        while True:
            airflow.check_alive()
            time.sleep(1)
