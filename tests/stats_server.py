"""A StatsD server that keeps what is ours."""

from __future__ import annotations

import re
import socket


class StatsServer:
    """Takes StatsD's datagrams, each of which has one metric, tagged in InfluxDB's way."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self.settings = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(self._socket.getsockname()[1]),
            "AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED": "True",
        }
        """Environment variables that make an Airflow send its metrics here."""

    def next(self) -> str:
        """The next metric of ours, as ``name,tag=value:number|kind``."""
        while True:
            metric = self._socket.recv(2000).decode().removeprefix("airflow.")
            if metric.startswith("codegateway."):
                return metric

    def receive(self, *names: str) -> list[str]:
        """Our metrics, until there is one of each of these names."""
        received: list[str] = []
        while not all(any(re.match(rf"{name}[,:]", metric) for metric in received) for name in names):
            received.append(self.next())
        return received

    def forget(self) -> None:
        """Drop what has come."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(2000)
        except BlockingIOError:
            self._socket.settimeout(30)

    def close(self) -> None:
        self._socket.close()
