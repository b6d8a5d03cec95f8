"""A CodeGateway, an S3 and an Airflow on loopback, for the length of a ``with`` block."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Self

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import IO

    from mypy_boto3_s3.client import S3Client

PROJECT = Path(__file__).resolve().parent.parent
BUCKET = "codegateway-examples"
COMMAND_SECONDS = 300
"""How long the commands of one call may take together."""
START_SECONDS = 60
"""How long the emulator and the S3 may each take until they say where they are."""
STOP_SECONDS = 20
"""How long a process may take to stop before it is killed."""

PRICES = [
    {"model": "google/veo-3.1-fast", "per_second": "0.15"},
    {"model": "bytedance/seedance-2.0", "per_render": "0.20"},
    {"model": "minimax/hailuo-2.3-fast", "per_render": "0.30"},
]
"""Made up, as in the documentation."""
SET_UP = ("db migrate", "pools set codegateway 2 'CodeGateway renders' --include-deferred")
"""The commands that make Airflow's database, and the pool of the marketing pipeline."""

# So that a browser shows a clip by its plain URL.
_READABLE_BY_ALL = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": f"arn:aws:s3:::{BUCKET}/*",
        }
    ],
}


class SandboxError(Exception):
    """Something that the sandbox started did not do what it should."""


class Sandbox:
    """Everything that the example DAGs need; nothing of it outlives the block but the log.

    :param home: Airflow's home; emptied at the start.
    :param render_seconds: how long the emulator takes for a render at least.
    :param settings: environment variables for Airflow, besides what the sandbox itself sets.
    """

    def __init__(
        self, home: Path, *, render_seconds: float, settings: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.log = home / "airflow.log"
        self._render_seconds = render_seconds
        self._settings = settings or {}

    def __enter__(self) -> Self:
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir(parents=True)
        with ExitStack() as stack:
            self._log_file = stack.enter_context(self.log.open("ab"))
            self.s3_endpoint = stack.enter_context(self._s3_server())
            self.emulator_url, gateway_connection = stack.enter_context(self._emulator())
            self.environment = {**self._airflow_environment(gateway_connection), **self._settings}
            self.s3 = self._s3_client()
            self.s3.create_bucket(Bucket=BUCKET)
            self.s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(_READABLE_BY_ALL))
            for file in sorted((PROJECT / "demo" / "input").iterdir()):
                self.s3.upload_file(str(file), BUCKET, f"input/{file.name}")
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def airflow(self, *commands: str) -> Iterator[tuple[str, float]]:
        """Run commands of Airflow; each is yielded when it has succeeded, with the seconds that it took.

        :raises SandboxError: one failed, or they take more than ``COMMAND_SECONDS``.
        """
        arguments = [sys.executable, "-m", "demo.airflow_commands", *commands]
        with self._running(arguments, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            watchdog = threading.Timer(COMMAND_SECONDS, process.kill)
            watchdog.start()
            try:
                for command in commands:
                    start = time.monotonic()
                    if process.stdout.readline().strip() != b"0":
                        end = "failed" if watchdog.is_alive() else f"did not end within {COMMAND_SECONDS} s"
                        raise SandboxError(f"`airflow {command}` {end}.")
                    yield command, time.monotonic() - start
            finally:
                watchdog.cancel()

    @contextmanager
    def running(
        self, command: str, settings: Mapping[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """One long-running command of Airflow.

        :param settings: environment variables besides the sandbox's own.
        """
        with self._running([sys.executable, "-m", "airflow", *shlex.split(command)], settings) as process:
            yield process

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of what Airflow and the emulator said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @contextmanager
    def _running(
        self, command: list[str], settings: Mapping[str, str] | None = None, stdout: int | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        with _process(
            command,
            env={**self.environment, **(settings or {})},
            stdout=self._log_file if stdout is None else stdout,
            stderr=self._log_file,
        ) as process:
            yield process

    @contextmanager
    def _emulator(self) -> Iterator[tuple[str, str]]:
        """A CodeGateway emulator: its URL, and the Airflow connection to it."""
        module = "airflow_provider_codegateway.emulator"
        with _process(
            [sys.executable, "-m", module, "--port", "0", "--render-seconds", str(self._render_seconds)],
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=self._log_file,
        ) as process:
            _, line = _first_lines(process, 2)
            # AIRFLOW_CONN_CODEGATEWAY_DEFAULT='{…}', as a shell would take it.
            _, _, connection = "".join(shlex.split(line)).partition("=")
            if not connection:
                raise SandboxError("The emulator did not start.")
            yield json.loads(connection)["host"], connection

    @contextmanager
    def _s3_server(self) -> Iterator[str]:
        """An S3 in a process of its own: its URL."""
        with _process(
            [sys.executable, "-m", "demo.s3_server"],
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=self._log_file,
        ) as process:
            [url] = _first_lines(process, 1)
            if not url:
                raise SandboxError("The S3 server did not start.")
            yield url

    def _airflow_environment(self, gateway_connection: str) -> dict[str, str]:
        # Nothing that is set for another Airflow or AWS may leak in, and no call may go to a proxy.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "AWS_"))
        }
        aws_connection = {
            "conn_type": "aws",
            "login": "access-key",
            "password": "secret-key",
            "extra": {"endpoint_url": self.s3_endpoint, "region_name": "us-east-1"},
        }
        return {
            **inherited,
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "example_dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW_CONN_CODEGATEWAY_DEFAULT": _with_prices(gateway_connection),
            "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(aws_connection),
        }

    def _s3_client(self) -> S3Client:
        return boto3.client(
            "s3",
            endpoint_url=self.s3_endpoint,
            region_name="us-east-1",
            aws_access_key_id="access-key",
            aws_secret_access_key="secret-key",  # noqa: S106 - moto takes anything
        )


@contextmanager
def _process(
    command: list[str], *, env: Mapping[str, str], stdout: IO[bytes] | int, stderr: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that Ctrl-C reaches only us and we stop it in order."""
    process = subprocess.Popen(  # noqa: S603
        command, cwd=PROJECT, env=env, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, SIGKILL)  # itself, or what it left behind
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _with_prices(connection: str) -> str:
    """So that the pages say what a clip would have cost."""
    values = json.loads(connection)
    extra = json.loads(values["extra"]) if isinstance(values.get("extra"), str) else values.get("extra") or {}
    return json.dumps({**values, "extra": {**extra, "spend": {"currency": "USD", "prices": PRICES}}})


def _first_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    """What a process says first; empty lines where it ends, or says nothing for ``START_SECONDS``."""
    assert process.stdout is not None
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        return [process.stdout.readline().decode().strip() for _ in range(count)]
    finally:
        watchdog.cancel()
