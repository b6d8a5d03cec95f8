"""The emulator from outside: in another process, as a command, as a fixture, and under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault, RemoteEmulator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HAILUO = "minimax/hailuo-2.3-fast"
COMMAND = [sys.executable, "-m", "airflow_provider_codegateway.emulator"]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    """An emulator in a process of its own."""
    command = [*COMMAND, "--port", "0", "--api-key", "sk-cg-other", "--link-lifetime", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def remote(process: subprocess.Popen[str]) -> Iterator[RemoteEmulator]:
    assert process.stdout is not None
    url = process.stdout.readline().split()[3].rstrip(",")
    emulator = RemoteEmulator(url)
    yield emulator
    emulator.close()


def generate(gateway: Emulator | RemoteEmulator) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/video/generate",
        json={"model": HAILUO, "duration": 1},
        headers={"Authorization": f"Bearer {gateway.api_key}"},
        timeout=30,
        trust_env=False,
    )


def test_remote_controls(remote: RemoteEmulator, tmp_path: Path) -> None:
    """An emulator in another process has the same controls."""
    remote.reset()
    assert (remote.api_key, remote.link_lifetime, remote.serving) == ("sk-cg-other", 60, "presigned")
    remote.fail_next(Fault.status(429, retry_after=3), times=2)
    remote.fail_next(Fault.no_url("error"))
    assert [generate(remote).status_code for _ in range(3)] == [429, 429, 200]
    (tmp_path / "clip").write_bytes(b"from a file")
    for clip, content in ((b"", b""), (b"bytes", b"bytes"), (tmp_path / "clip", b"from a file")):
        remote.serve_clip(clip)
        url = generate(remote).json()["data"][0]["url"]
        assert httpx.get(url).content == content
    remote.fail_next(ClipFault.status(503))
    assert httpx.get(url).status_code == 503
    remote.serve_clip(None)
    assert httpx.get(generate(remote).json()["data"][0]["url"]).content[4:8] == b"ftyp"
    assert (remote.accepted, remote.billed, remote.refused) == (5, 5, 2)
    assert [render.status for render in remote.ledger] == [429, 429, 200, 200, 200, 200, 200]
    assert [request.status for request in remote.clip_requests] == [200, 200, 200, 503, 200]
    remote.wait_for(billed=5, rendering=0)
    with pytest.raises(TimeoutError, match="'billed': 5"):
        remote.wait_for(billed=6, timeout=0.01)
    with pytest.raises(ValueError, match="cannot wait"):
        remote.wait_for(bills=6)
    remote.serving = "raw"
    assert "expires_at" not in generate(remote).json()
    with pytest.raises(ValueError, match="serving must be"):
        remote.serving = "cooked"  # type: ignore[assignment]
    remote.reset()
    assert (remote.ledger, remote.serving) == ((), "presigned")


def test_remote_down(remote: RemoteEmulator) -> None:
    """It can be down, and up again, also when the block fails."""
    for _ in range(2):
        with pytest.raises(httpx.ConnectError), remote.down():
            generate(remote)
    assert generate(remote).status_code == 200


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30)


def test_remote_faults(remote: RemoteEmulator) -> None:
    """Faults of one model, and until cleared, work from another process as well."""
    remote.reset()
    remote.fail_next(Fault.foreign("envoy"), times=None, model=HAILUO)
    assert [generate(remote).status_code for _ in range(2)] == [503, 503]
    remote.clear_faults()
    assert generate(remote).status_code == 200
    with pytest.raises(ValueError, match="times must be"):
        remote.fail_next(Fault.hang(), times=-1)
    assert remote.billed == 3


def test_faults_from_the_command_line(remote: RemoteEmulator) -> None:
    """A person can make a gateway that runs fail, for one model or all, so often or until it is cleared."""
    remote.reset()
    assert command("fail", "hostile_text", "shape=nul", "code=502", "--url", remote.url).returncode == 0
    assert generate(remote).status_code == 502
    arguments = ["fail", "foreign", "who=heroku", "billed=false", "--times", "0", "--model", HAILUO]
    assert command(*arguments, "--url", remote.url).returncode == 0
    assert [generate(remote).status_code for _ in range(2)] == [503, 503]
    assert command("clear", "--url", remote.url).returncode == 0
    assert generate(remote).status_code == 200
    assert remote.billed == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fail", "flood"], "unknown fault 'flood'"),
        (["fail", "foreign", "envoy"], "write 'envoy' as name=value"),
        (["fail", "foreign", "who=apache"], "who must be one of envoy"),
        (["clear", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: "),
    ],
)
def test_command_says_what_is_wrong(arguments: list[str], message: str) -> None:
    """The command ends with one line that names the problem."""
    result = command(*arguments)
    assert result.returncode == 1
    assert result.stderr.startswith(f"codegateway-emulator: {message}")
    assert result.stderr.count("\n") == 1


def test_command_lists_the_faults() -> None:
    """Each fault is listed with its parameters and what it does."""
    lines = command("faults").stdout.splitlines()
    assert "foreign who= billed= retry_after= gives_up_after=" in lines
    assert lines[lines.index("clip.slow bytes_per_second=") + 1] == "    Send the body slowly."


def test_tls(certificate: Path) -> None:
    """With a certificate the gateway and its links speak TLS; a link can say http all the same."""
    with Emulator(certificate=certificate, host="127.0.0.1") as emulator:
        emulator.serve_clip(b"clip")
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False  # the certificate is for another name
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        with httpx.Client(verify=context, trust_env=False, headers=headers) as client:
            assert emulator.url.startswith("https://")

            def link() -> str:
                answer = client.post(f"{emulator.url}/v1/video/generate", json={"model": HAILUO})
                return str(answer.json()["data"][0]["url"])

            url = link()
            assert url.startswith(f"{emulator.url}/clips/")
            assert httpx.get(url, verify=context).content == b"clip"
            emulator.fail_next(Fault.odd_answer("url_http"))
            assert link().startswith("http://127.0.0.1:")
            emulator.fail_next(Fault.whole_json("chunk"))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                link()
            emulator.fail_next(Fault.reset_after())
            with pytest.raises(httpx.TransportError):
                link()
            with pytest.raises(httpx.TransportError):
                httpx.get(url.replace("https", "http"))


def test_command(process: subprocess.Popen[str], remote: RemoteEmulator) -> None:
    """The command prints the connection to set, logs no link, and SIGTERM ends it cleanly."""
    url = generate(remote).json()["data"][0]["url"]
    httpx.get(url)
    assert process.stdout is not None
    assert process.stderr is not None
    name, _, connection = process.stdout.readline().strip().partition("=")
    assert name == "AIRFLOW_CONN_CODEGATEWAY_DEFAULT"
    assert json.loads(connection.strip("'")) == {
        "conn_type": "codegateway",
        "host": remote.url,
        "password": "sk-cg-other",
    }
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    log = process.stderr.read()
    assert "billed" in log
    assert "Signature" not in log
    assert "Traceback" not in log


def test_command_on_a_taken_port() -> None:
    """The command says why it cannot start."""
    with Emulator() as emulator:
        port = emulator.url.rpartition(":")[2]
        result = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, timeout=30)
    assert result.returncode == 1
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_importing_costs_nothing() -> None:
    """Every pytest run loads the plugin: that must not load a server or an encoder."""
    code = (
        "import sys, airflow_provider_codegateway.emulator.pytest_plugin as _;"
        "import airflow_provider_codegateway.emulator.testing as _;"
        "heavy = ('starlette', 'uvicorn', 'av', 'httpx', 'airflow', 'moto', 'boto3');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_independence() -> None:
    """The emulator loads nothing of the package that it checks, and nothing of Airflow."""
    code = (
        "import sys; from airflow_provider_codegateway.emulator import server, remote;"
        "print([name for name in sys.modules if name.split('.')[0] == 'airflow' or name.startswith("
        "'airflow_provider_codegateway.') and not name.startswith('airflow_provider_codegateway.emulator')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_fixture(codegateway_emulator: Emulator) -> None:
    """The fixture sets the connection that Airflow reads."""
    connection = json.loads(os.environ["AIRFLOW_CONN_CODEGATEWAY_DEFAULT"])
    assert connection["host"] == codegateway_emulator.url
    assert connection["password"] == codegateway_emulator.api_key
    assert codegateway_emulator.ledger == ()


def test_many_at_once() -> None:
    """Five hundred calls are in progress at once, and each is billed and answered."""
    calls = 500
    body = json.dumps({"model": HAILUO})

    async def call(emulator: Emulator) -> bytes:
        host, _, port = emulator.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/video/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {emulator.api_key}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def run(emulator: Emulator) -> list[bytes]:
        with emulator.holding():
            pending = [asyncio.create_task(call(emulator)) for _ in range(calls)]
            await asyncio.to_thread(emulator.wait_for, rendering=calls)
        return await asyncio.gather(*pending)

    with Emulator() as emulator:
        emulator.serve_clip(b"x")
        answers = asyncio.run(run(emulator))
        assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
        assert (emulator.billed, emulator.refused) == (calls, 0)
        assert all(render.answered for render in emulator.ledger)
