"""A whole Airflow with its UI, wired to the emulator and to S3, until it is interrupted."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import httpx

from demo.sandbox import BUCKET, PROJECT, SET_UP, Sandbox, SandboxError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from typing import NoReturn

# What `airflow standalone` runs; but there the log servers listen on every interface.
COMPONENTS = {
    "api-server": "api-server",
    "scheduler": "scheduler --skip-serve-logs",
    "dag-processor": "dag-processor",
    "triggerer": "triggerer --skip-serve-logs",
}
START_SECONDS = 300
"""How long Airflow may take until all of it is healthy."""


def serve(sandbox: Sandbox, *, preferred_port: int) -> NoReturn:
    """Start Airflow, say where it is, and wait.

    :raises SandboxError: a part of Airflow did not start, or stopped.
    """
    port = _free_port(preferred_port)
    url = f"http://127.0.0.1:{port}"
    print("Starting Airflow; its log is in", sandbox.log.relative_to(PROJECT), flush=True)
    for _ in sandbox.airflow(*SET_UP):
        pass
    settings = {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",  # a DAG put beside the examples is there at once
        # Whoever reaches this port is on this machine: nobody need log in.
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    }
    with sandbox.serving(COMPONENTS, settings) as processes:
        _wait_until_healthy(url, processes)
        print(f"\nAirflow     {url}  (no password; the example DAGs are there: trigger one)")
        print(f"Clips       {sandbox.s3_endpoint}/{BUCKET}/<key>")
        print(f"Emulator    {sandbox.emulator_url}")
        print(f"DAGs        {PROJECT / 'example_dags'}: put yours there")
        print("\nCtrl-C stops everything.", flush=True)
        while True:
            _check_alive(processes)
            time.sleep(1)


def _wait_until_healthy(url: str, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        while time.monotonic() < give_up_at:
            _check_alive(processes)
            try:
                health = client.get("/api/v2/monitor/health").json()
                if all(part["status"] == "healthy" for part in health.values()):
                    return
            except (httpx.TransportError, ValueError):
                pass  # not yet
            time.sleep(0.5)
    raise SandboxError(f"Airflow was not healthy within {START_SECONDS} s.")


def _check_alive(processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if (status := process.poll()) is not None:
            raise SandboxError(f"Airflow's {name} ended with exit status {status}.")


def _free_port(preferred: int) -> int:
    """A port on loopback that nothing listens on: the preferred one, if it is free."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", preferred))
        except OSError:
            listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
