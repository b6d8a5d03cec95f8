"""A whole Airflow on loopback: API server, scheduler, DAG processor and triggerers as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from demo.sandbox import SET_UP, Sandbox, SandboxError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

# What `airflow standalone` runs; but there the log servers listen on every interface.
COMPONENTS = {
    "api-server": "api-server",
    "scheduler": "scheduler --skip-serve-logs",
    "dag-processor": "dag-processor",
}
TRIGGERER = "triggerer --skip-serve-logs"
START_SECONDS = 300
"""How long Airflow may take until all of it is healthy."""
STOP_SECONDS = 120
"""How long a triggerer may take to stop in order."""


class AirflowServer:
    """Airflow in a sandbox, for the length of a ``with`` block.

    Whoever reaches its port is on this machine, and need not log in.

    :param sandbox: an open one.
    :param preferred_port: of the API server and UI; a free one is taken if it is not free.
    :param triggerers: how many to start with, see ``start_triggerer``.
    :param settings: environment variables for Airflow's processes.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        preferred_port: int = 0,
        triggerers: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        port = _free_port(preferred_port)
        self.url = f"http://127.0.0.1:{port}"
        self.sandbox = sandbox
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._contexts: dict[str, ExitStack] = {}
        self._first_triggerers = triggerers
        self._settings = {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",  # a DAG put beside the others is there at once
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for _ in self.sandbox.airflow(*SET_UP):
                pass
            self._client = stack.enter_context(
                httpx.Client(base_url=self.url, trust_env=False, timeout=httpx.Timeout(120.0))
            )
            self._all = stack.enter_context(ExitStack())
            stack.callback(self._terminate)  # all of them, before the first is waited for
            for name, command in COMPONENTS.items():
                self.start(name, command)
            for number in range(self._first_triggerers):
                self.start_triggerer(f"triggerer-{number + 1}")
            self.wait_until(self._healthy, what="Airflow healthy", seconds=START_SECONDS)
            token = self._client.get("/auth/token").raise_for_status().json()["access_token"]
            self._client.headers["Authorization"] = f"Bearer {token}"
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def start_triggerer(self, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Start another triggerer."""
        self.start(name, TRIGGERER, settings)

    def start(self, name: str, command: str, settings: Mapping[str, str] | None = None) -> None:
        """Start another part of Airflow.

        :param command: of Airflow's command line, such as ``scheduler``.
        """
        context = self._contexts[name] = self._all.enter_context(ExitStack())
        process = self.sandbox.running(command, {**self._settings, **(settings or {})})
        self.processes[name] = context.enter_context(process)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop a part in order, or kill it together with all that it started, as a lost machine is."""
        process = self.processes.pop(name)
        if number == signal.SIGKILL:
            for each in _family(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(each, number)
        else:
            process.send_signal(number)
        process.wait(STOP_SECONDS)
        self._contexts.pop(name).close()

    def trigger(self, dag_id: str, run_id: str = "run", **conf: Any) -> None:
        """Start a run of a DAG, as soon as Airflow knows it."""

        def known() -> bool:
            return self._client.get(f"/api/v2/dags/{dag_id}").status_code == httpx.codes.OK

        self.wait_until(known, what=f"DAG {dag_id} known")
        self.call(
            "POST",
            f"/api/v2/dags/{dag_id}/dagRuns",
            json={"dag_run_id": run_id, "logical_date": None, "conf": conf},
        )

    def tasks(self, dag_id: str, run_id: str = "run") -> list[dict[str, Any]]:
        """The task instances of a run, as the REST API shows them."""
        path, page = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", 100
        found: list[dict[str, Any]] = []
        while True:
            answer = self.call("GET", path, params={"limit": page, "offset": len(found)})
            found += answer["task_instances"]
            if len(found) >= answer["total_entries"]:
                return found

    def states(self, dag_id: str, run_id: str = "run") -> dict[str, int]:
        """How many task instances of a run are in each state."""
        states = [str(task["state"]) for task in self.tasks(dag_id, run_id)]
        return {state: states.count(state) for state in sorted(set(states))}

    def run_state(self, dag_id: str, run_id: str = "run") -> str:
        """The state of a run."""
        return str(self.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_run(
        self, dag_id: str, run_id: str = "run", *, seconds: float = 300, every: float = 0.2
    ) -> str:
        """The state in which a run ended.

        :param every: seconds between two looks, each of which loads all task instances of the run.
        """
        self.wait_until(
            lambda: self.run_state(dag_id, run_id) in {"success", "failed"},
            what=f"end of {dag_id} {run_id}",
            seconds=seconds,
            every=every,
        )
        return self.run_state(dag_id, run_id)

    def xcom(self, dag_id: str, task_id: str, key: str, run_id: str = "run", map_index: int = -1) -> Any:
        """One XCom."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.call("GET", path, params={"map_index": map_index})["value"]

    def call(self, method: str, path: str, **content: Any) -> Any:
        """One call of Airflow's REST API."""
        response = self._client.request(method, path, **content)
        if response.is_error:
            raise SandboxError(f"{method} {path} was answered {response.status_code}: {response.text[:500]}")
        return response.json()

    def wait_until(
        self, condition: Callable[[], bool], *, what: str, seconds: float = 120, every: float = 0.2
    ) -> None:
        """Poll until ``condition`` holds.

        :raises SandboxError: it does not within ``seconds``, or a part of Airflow ended.
        """
        give_up_at = time.monotonic() + seconds
        while not condition():
            self.check_alive()
            if time.monotonic() > give_up_at:
                raise SandboxError(f"Within {seconds:.0f} s it did not come to this: {what}.")
            time.sleep(every)

    def check_alive(self) -> None:
        """See that every process runs.

        :raises SandboxError: naming one that ended.
        """
        for name, process in self.processes.items():
            if (status := process.poll()) is not None:
                raise SandboxError(f"Airflow's {name} ended with exit status {status}.")

    def _healthy(self) -> bool:
        try:
            health = self._client.get("/api/v2/monitor/health").json()
        except (httpx.TransportError, ValueError):
            return False  # not yet
        needed = set(health) if self._first_triggerers else set(health) - {"triggerer"}
        return all(health[part]["status"] == "healthy" for part in needed)

    def _terminate(self) -> None:
        for process in self.processes.values():
            process.terminate()


def _family(pid: int) -> list[int]:
    """A process and all that descend from it, itself first: it starts no more of them then."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


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
