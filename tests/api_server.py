"""Airflow's own API server, on a socket that it inherits: ``python api_server.py <file descriptor>``."""

from __future__ import annotations

import os
import socket
import sys

# As `airflow.api_fastapi.main` does: connections come from the database.
os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"

if __name__ == "__main__":
    import uvicorn
    from airflow.api_fastapi.app import cached_app

    server = uvicorn.Server(uvicorn.Config(cached_app(), log_level="info", proxy_headers=False))
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
