"""The emulator as a gateway: what it accepts and refuses, what it bills, and what it can make go wrong."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VEO = "google/veo-3.1-fast"
SEEDANCE = "bytedance/seedance-2.0"
HAILUO = "minimax/hailuo-2.3-fast"

CLIP = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 400


def png(width: int = 4, height: int = 4, colour: tuple[int, int, int] = (255, 0, 0)) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


PNG = base64.b64encode(png()).decode()
HTTPS = "https://example.com/wheat-field.jpg"


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(extra_models=("acme/next-1",)) as emulator:
        yield emulator


@pytest.fixture
def gateway(emulator: Emulator) -> Emulator:
    """An emulator with an empty ledger that answers with a small clip."""
    emulator.reset()
    emulator.serve_clip(CLIP)
    return emulator


@pytest.fixture(scope="module")
def key_holder(emulator: Emulator) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {emulator.api_key}"}
    with httpx.Client(base_url=emulator.url, headers=headers, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def client(gateway: Emulator, key_holder: httpx.Client) -> httpx.Client:
    """A client with the key of the gateway."""
    return key_holder


@cache
def anyone() -> httpx.Client:
    """A client without a key. One for all: each would load the system's certificates."""
    return httpx.Client(timeout=20, trust_env=False)


def generate(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/video/generate", json={"model": VEO, "prompt": "A paper boat", **body})


def link(client: httpx.Client) -> str:
    url: str = generate(client).json()["data"][0]["url"]
    return url


def get(url: str, **headers: str) -> httpx.Response:
    return anyone().get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


VALID: list[dict[str, Any]] = [
    *({"model": VEO, "prompt": "x", "aspect_ratio": value} for value in ("16:9", "9:16", "1:1")),
    *({"model": VEO, "prompt": "x", "duration": value} for value in ("4s", "6s", "8s")),
    *({"model": VEO, "prompt": "x", "resolution": value} for value in ("720p", "1080p")),
    {"model": VEO, "prompt": "x" * 2000, "generate_audio": True},
    {"model": VEO, "prompt": "日" * 2000, "generate_audio": False},
    {"model": VEO, "prompt": "x", "image_input": PNG},
    *(
        {"model": SEEDANCE, "prompt": "x", "aspect_ratio": value}
        for value in ("16:9", "4:3", "1:1", "3:4", "9:16", "21:9", "9:21")
    ),
    *({"model": SEEDANCE, "prompt": "x", "duration": value} for value in range(4, 13)),
    *({"model": SEEDANCE, "prompt": "x", "resolution": value} for value in ("480p", "720p", "1080p")),
    {"model": SEEDANCE, "prompt": "x", "camera_fixed": True, "watermark": True, "generate_audio": True},
    {"model": SEEDANCE, "prompt": "x", "fps": 24},
    *({"model": SEEDANCE, "prompt": "x", "seed": value} for value in (0, -1, 2**70)),
    {"model": SEEDANCE, "prompt": "x", "image": HTTPS},
    {"model": SEEDANCE, "prompt": "x", "image": "https://8.8.8.8/a.png"},
    {"model": SEEDANCE, "prompt": "x", "image": "https://[2001:4860:4860::8888]:8443/a.png"},
    {"model": SEEDANCE, "prompt": "x", "image": PNG, "last_frame_image": HTTPS},
    {"model": SEEDANCE, "prompt": "x", "reference_images": [HTTPS, PNG]},
    {"model": SEEDANCE, "prompt": "x", "reference_images": []},
    {"model": SEEDANCE, "prompt": "x", "reference_video": "https://example.com/a.mp4"},
    {"model": HAILUO},
    {"model": HAILUO, "prompt": "x" * 2000},
    *({"model": HAILUO, "duration": value} for value in (1, 6, 10)),
    *({"model": HAILUO, "resolution": value} for value in ("768P", "1080P")),
    {"model": HAILUO, "fast_pretreatment": True, "prompt_optimizer": False},
    {"model": HAILUO, "first_frame_image": PNG},
    {"model": HAILUO, "first_frame_image": HTTPS},
    {"model": "acme/next-1", "prompt": 7, "anything": {"at": ["all"]}},
]

INTERNAL_HOSTS = [
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "intranet",
    "db.internal",
    "printer.local",
    "127.0.0.1",
    "127.1",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "2130706433",
    "127。0。0。1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fd00::1]",
    "[::ffff:127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]

INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x"}, "model is required"),
    ({"model": 3, "prompt": "x"}, "model must be a string"),
    ({"model": "google/veo-4", "prompt": "x"}, "unknown model: google/veo-4"),
    ({"model": VEO}, "prompt is required for google/veo-3.1-fast"),
    ({"model": VEO, "prompt": ""}, "prompt is required for google/veo-3.1-fast"),
    ({"model": VEO, "prompt": " \n"}, "prompt is required for google/veo-3.1-fast"),
    ({"model": VEO, "prompt": None}, "prompt must be a string"),
    ({"model": VEO, "prompt": "x" * 2001}, "prompt exceeds 2000 chars"),
    *(
        ({"model": VEO, "prompt": "x", "duration": value}, 'duration must be one of "4s", "6s", "8s" for')
        for value in (6, "6", "5s", 6.0, None, ["6s"])
    ),
    ({"model": VEO, "prompt": "x", "aspect_ratio": "21:9"}, 'aspect_ratio must be one of "16:9"'),
    *(
        ({"model": VEO, "prompt": "x", "resolution": value}, "resolution must be one of")
        for value in ("480p", "1080P", 720)
    ),
    *(
        ({"model": VEO, "prompt": "x", "generate_audio": value}, "generate_audio must be a boolean")
        for value in (1, "true", None)
    ),
    ({"model": VEO, "prompt": "x", "seed": 1}, "unknown parameter for google/veo-3.1-fast: seed"),
    ({"model": VEO, "prompt": "x", "image": PNG}, "unknown parameter for google/veo-3.1-fast: image"),
    ({"model": VEO, "prompt": "x", "image_input": HTTPS}, "image_input must be a base64 string, not a URL"),
    ({"model": VEO, "prompt": "x", "image_input": ""}, "image_input must be a base64 string"),
    ({"model": VEO, "prompt": "x", "image_input": "no base64!"}, "image_input must be a base64 string"),
    ({"model": VEO, "prompt": "x", "image_input": "aGVsbG8="}, "image_input is not a decodable image"),
    (
        {"model": VEO, "prompt": "x", "image_input": f"data:image/png;base64,{PNG}"},
        "image_input must be a base64 string: bare base64",
    ),
    ({"model": SEEDANCE}, "prompt is required for bytedance/seedance-2.0"),
    ({"model": SEEDANCE, "prompt": "x" * 2001}, "prompt exceeds 2000 chars"),
    *(
        ({"model": SEEDANCE, "prompt": "x", "duration": value}, "duration must be")
        for value in (3, 13, "6s", "6", 6.0, True, None)
    ),
    ({"model": SEEDANCE, "prompt": "x", "aspect_ratio": "2:1"}, "aspect_ratio must be one of"),
    ({"model": SEEDANCE, "prompt": "x", "resolution": "768P"}, "resolution must be one of"),
    *(({"model": SEEDANCE, "prompt": "x", "fps": value}, "fps must be 24") for value in (25, "24", 24.0)),
    *(
        ({"model": SEEDANCE, "prompt": "x", "seed": value}, "seed must be an integer")
        for value in (True, 1.0, "1", None)
    ),
    ({"model": SEEDANCE, "prompt": "x", "camera_fixed": 0}, "camera_fixed must be a boolean"),
    ({"model": SEEDANCE, "prompt": "x", "image_input": PNG}, "unknown parameter for"),
    ({"model": SEEDANCE, "prompt": "x", "reference_images": HTTPS}, "reference_images must be a list"),
    ({"model": SEEDANCE, "prompt": "x", "reference_images": [1]}, "reference_images must be an https URL or"),
    ({"model": SEEDANCE, "prompt": "x", "reference_video": PNG}, "reference_video is not a decodable video"),
    ({"model": SEEDANCE, "prompt": "x", "image": "http://example.com/a.png"}, "image must be an HTTPS URL"),
    ({"model": SEEDANCE, "prompt": "x", "image": "s3://bucket/a.png"}, "image must be an HTTPS URL"),
    ({"model": SEEDANCE, "prompt": "x", "image": "https:///a.png"}, "image is not a valid URL"),
    ({"model": SEEDANCE, "prompt": "x", "image": "https://[::1/a.png"}, "image is not a valid URL"),
    *(
        ({"model": SEEDANCE, "prompt": "x", "image": f"https://{host}/a.png"}, "image must not point at")
        for host in INTERNAL_HOSTS
    ),
    ({"model": HAILUO, "prompt": "x" * 2001}, "prompt exceeds 2000 chars"),
    ({"model": HAILUO, "prompt": 1}, "prompt must be a string"),
    (
        {"model": HAILUO, "aspect_ratio": "16:9"},
        "unknown parameter for minimax/hailuo-2.3-fast: aspect_ratio",
    ),
    *(({"model": HAILUO, "duration": value}, "duration must be") for value in ("6s", "6", 6.0, True, 0)),
    *(({"model": HAILUO, "resolution": value}, "resolution must be one of") for value in ("768p", "1080p")),
    ({"model": HAILUO, "prompt_optimizer": "yes"}, "prompt_optimizer must be a boolean"),
    ({"model": HAILUO, "generate_audio": True}, "unknown parameter for"),
]


@pytest.mark.parametrize("body", VALID, ids=lambda body: json.dumps(body)[:60])
def test_valid_request(client: httpx.Client, gateway: Emulator, body: dict[str, Any]) -> None:
    """What the guide allows is rendered and billed."""
    response = client.post("/v1/video/generate", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == body["model"]
    assert gateway.billed == 1


@pytest.mark.parametrize(("body", "message"), INVALID, ids=lambda value: json.dumps(value)[:60])
def test_invalid_request(client: httpx.Client, gateway: Emulator, body: dict[str, Any], message: str) -> None:
    """What the guide rules out is answered 400 with a plain string, and costs nothing."""
    response = client.post("/v1/video/generate", json=body)
    assert response.status_code == 400
    assert response.json().keys() == {"error"}
    assert response.json()["error"].startswith(message)
    assert (gateway.refused, gateway.accepted) == (1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "malformed JSON"),
        (b"{", "malformed JSON"),
        (b'{"model": NaN}', "malformed JSON"),
        (b'{"model": "\\ud800"}', "malformed JSON"),
        (b"\xff", "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
        (b"[]", "request body must be a JSON object"),
        (b"null", "request body must be a JSON object"),
    ],
)
def test_no_json_object(client: httpx.Client, content: bytes, message: str) -> None:
    """A body that is not a JSON object is answered 400."""
    response = client.post("/v1/video/generate", content=content)
    assert (response.status_code, response.json()) == (400, {"error": message})


def test_too_large(client: httpx.Client, gateway: Emulator) -> None:
    """A body over 64 MiB is read to its end and answered 413."""
    response = client.post("/v1/video/generate", content=bytes(64 * 1024 * 1024 + 1))
    assert response.status_code == 413
    assert gateway.refused == 1


def test_wrong_method_and_path(client: httpx.Client, gateway: Emulator) -> None:
    """There is one endpoint, and it takes a POST."""
    assert client.get("/v1/video/generate").status_code == 405
    assert client.post("/v1/videos").status_code == 404
    assert gateway.ledger == ()


@pytest.mark.parametrize(
    "authorization", [None, "Bearer sk-cg-other", "sk-cg-emulator", "Bearer sk-cg-emulator x"]
)
def test_unauthorized(gateway: Emulator, authorization: str | None) -> None:
    """Without the key it answers 401 in the guide's envelope, before it looks at the body."""
    headers = {} if authorization is None else {"Authorization": authorization}
    response = anyone().post(f"{gateway.url}/v1/video/generate", json={}, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert gateway.refused == 1


def test_answer(client: httpx.Client, gateway: Emulator) -> None:
    """The answer has the guide's fields, and the ledger tells what was bought."""
    before = int(time.time())
    body = generate(client, duration="4s").json()
    (render,) = gateway.ledger
    assert list(body) == ["created", "model", "serving", "expires_at", "data"]
    assert before <= body["created"] <= time.time()
    assert body["expires_at"] - body["created"] in (3600, 3601)
    url = urlsplit(body["data"][0]["url"])
    assert f"{url.scheme}://{url.netloc}" == gateway.url
    assert parse_qs(url.query).keys() == {"Expires", "Signature"}
    assert (render.model, render.prompt, render.state) == (VEO, "A paper boat", "billed")
    assert (render.status, render.answered, render.clip) == (200, True, url.path)
    assert render.request == {"model": VEO, "prompt": "A paper boat", "duration": "4s"}
    assert render.billed_at is not None
    assert render.received_at <= render.billed_at


def test_ledger_keeps_no_media(client: httpx.Client, gateway: Emulator) -> None:
    """Of an image the ledger keeps a digest, of a URL what stands before the query."""
    generate(client, model=SEEDANCE, image=f"{HTTPS}?signature=secret", reference_images=[PNG])
    (render,) = gateway.ledger
    assert render.request["image"] == HTTPS
    assert render.request["reference_images"][0].startswith("sha256:")
    assert "prompt" not in repr(render.request.get("image"))


def test_raw_serving(client: httpx.Client, gateway: Emulator) -> None:
    """A raw URL has no query and comes without expires_at."""
    gateway.serving = "raw"
    body = generate(client).json()
    assert "expires_at" not in body
    assert body["serving"] == "raw"
    assert get(body["data"][0]["url"]).content == CLIP


def call_by_hand(gateway: Emulator) -> socket.socket:
    """Send a POST and return the connection that its answer will come on."""
    content = json.dumps({"model": HAILUO}).encode()
    head = (
        f"POST /v1/video/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.api_key}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port_of(gateway)), timeout=20)
    connection.sendall(head.encode() + content)
    return connection


def port_of(gateway: Emulator) -> int:
    return int(gateway.url.rpartition(":")[2])


def test_hang_up_is_billed(gateway: Emulator) -> None:
    """A render whose client hangs up goes on and is billed."""
    with gateway.holding():
        with call_by_hand(gateway):
            gateway.wait_for(rendering=1)
        gateway.wait_for(hung_up=1)
        assert gateway.billed == 0
    gateway.wait_for(billed=1, rendering=0)
    (render,) = gateway.ledger
    assert (render.state, render.answered, render.status) == ("billed", False, None)


def test_render_takes_its_time(client: httpx.Client, gateway: Emulator) -> None:
    """A call blocks for render_seconds at least."""
    gateway.render_seconds = 0.3
    started = time.monotonic()
    generate(client)
    assert time.monotonic() - started >= 0.3


def test_wait_for_times_out(gateway: Emulator) -> None:
    """A wait that is not met says what there is instead."""
    with pytest.raises(TimeoutError, match="'billed': 0"):
        gateway.wait_for(billed=1, timeout=0.01)
    with pytest.raises(ValueError, match="cannot wait for bills"):
        gateway.wait_for(bills=1)


def test_reset(client: httpx.Client, gateway: Emulator) -> None:
    """A reset empties the ledger, the faults and the settings, and voids what still renders."""
    gateway.fail_next(Fault.status(429))
    gateway.render_seconds = 60
    gateway.reset()
    assert generate(client, model=HAILUO).status_code == 200
    assert len(gateway.ledger) == 1


def test_reads_after_the_end() -> None:
    """The ledger can be read when the emulator has stopped; the controls say that it has."""
    with Emulator() as emulator:
        anyone().post(f"{emulator.url}/v1/video/generate")
    assert emulator.refused == 1
    with pytest.raises(RuntimeError, match="not running"):
        emulator.reset()
    with pytest.raises(RuntimeError, match="never started"):
        _ = Emulator().ledger


def test_port_taken(gateway: Emulator) -> None:
    """A port that is taken is an error at the start."""
    with pytest.raises(OSError, match="in use"):
        Emulator(port=port_of(gateway)).start()


def test_stops_under_way() -> None:
    """Stopping drops calls in progress, and does not wait for their renders."""
    with Emulator(render_seconds=600) as emulator:
        emulator.serve_clip(CLIP)
        connection = call_by_hand(emulator)
        emulator.wait_for(rendering=1)
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_stops_with_connections_not_yet_accepted() -> None:
    """Stopping drops connections that it has not looked at."""
    with Emulator() as emulator:
        connection = socket.create_connection(("127.0.0.1", port_of(emulator)), timeout=20)
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)


# Faults of the gateway.


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422, 429, 500, 502, 503, 504, 529])
def test_status_fault(client: httpx.Client, gateway: Emulator, code: int) -> None:
    """A status fault strikes one call and bills nothing."""
    gateway.fail_next(Fault.status(code, retry_after=2))
    response = generate(client)
    assert response.status_code == code
    assert response.headers["retry-after"] == "2"
    assert "error" in response.json()
    assert (gateway.refused, gateway.billed) == (1, 0)
    assert generate(client).status_code == 200


def test_status_fault_bodies(client: httpx.Client, gateway: Emulator) -> None:
    """A status fault answers with the envelope, dict, text or HTML that it was given."""
    gateway.fail_next(Fault.status(403))
    assert generate(client).json()["error"] == {
        "type": "permission_denied",
        "message": "insufficient balance",
    }
    gateway.fail_next(Fault.status(500, body={"detail": 1}))
    assert generate(client).json() == {"detail": 1}
    gateway.fail_next(Fault.status(500, body="oops"))
    assert generate(client).text == "oops"
    gateway.fail_next(Fault.status(502, html=True))
    assert "<html>" in generate(client).text


def test_billed_status_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A 5xx may have been billed; a status that says otherwise cannot."""
    gateway.fail_next(Fault.status(504, billed=True))
    assert generate(client).status_code == 504
    assert (gateway.billed, gateway.ledger[0].status) == (1, 504)
    for code in (400, 429, 503):
        with pytest.raises(ValueError, match="never billed"):
            Fault.status(code, billed=True)


@pytest.mark.parametrize(("fault", "billed"), [(Fault.reset_before(), 0), (Fault.reset_after(), 1)])
def test_reset_fault(client: httpx.Client, gateway: Emulator, fault: Fault, billed: int) -> None:
    """A TCP reset comes before the render or after it."""
    gateway.fail_next(fault)
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        generate(client)
    assert gateway.billed == billed
    assert gateway.ledger[0].status is None


def test_hang_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A gateway that hangs has billed the render nevertheless."""
    gateway.fail_next(Fault.hang())
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/video/generate", json={"model": HAILUO}, timeout=0.2)
    assert (gateway.billed, gateway.ledger[0].answered) == (1, False)


def test_slow_body_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A slow answer is whole."""
    gateway.fail_next(Fault.slow_body(2000))
    assert generate(client).json()["data"][0]["url"]


def test_truncated_body_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A truncated answer was billed and not whole."""
    gateway.fail_next(Fault.truncated_body())
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        generate(client)
    assert (gateway.billed, gateway.ledger[0].answered) == (1, False)


def test_html_fault(client: httpx.Client, gateway: Emulator) -> None:
    """An HTML page under 200 was billed."""
    gateway.fail_next(Fault.html())
    response = generate(client)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert gateway.billed == 1


def test_no_url_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A billed answer can lack its URL in every shape."""
    answers = {}
    for shape in ("empty", "missing", "null", "no_item_url", "blank", "error"):
        gateway.fail_next(Fault.no_url(shape))
        answers[shape] = generate(client)
    assert answers["empty"].json()["data"] == []
    assert "data" not in answers["missing"].json()
    assert answers["null"].json()["data"] is None
    assert answers["no_item_url"].json()["data"] == [{}]
    assert answers["blank"].json()["data"] == [{"url": ""}]
    assert answers["error"].text[0].isspace()
    assert answers["error"].json()["error"]["type"] == "content_filtered"
    assert {answer.status_code for answer in answers.values()} == {200}
    assert gateway.billed == 6


def test_leading_whitespace_fault(client: httpx.Client, gateway: Emulator) -> None:
    """White space keeps the connection alive while it renders; then comes the JSON."""
    gateway.fail_next(Fault.leading_whitespace())
    with gateway.holding():
        request = client.build_request("POST", "/v1/video/generate", json={"model": HAILUO})
        response = client.send(request, stream=True)
        assert response.status_code == 200
        assert gateway.billed == 0
    assert response.read()[:1].isspace()
    assert get(response.json()["data"][0]["url"]).content == CLIP
    assert gateway.ledger[0].answered is True


def test_early_expiry_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A link can stop working before its time."""
    gateway.fail_next(Fault.early_expiry(0))
    body = generate(client).json()
    assert body["expires_at"] > time.time() + 3000
    assert get(body["data"][0]["url"]).status_code == 403


def test_faults_queue_up(client: httpx.Client, gateway: Emulator) -> None:
    """Each call takes one fault."""
    gateway.fail_next(Fault.status(429), times=2)
    gateway.fail_next(Fault.status(503))
    assert [generate(client).status_code for _ in range(4)] == [429, 429, 503, 200]
    assert [render.status for render in gateway.ledger] == [429, 429, 503, 200]


def test_down(client: httpx.Client, gateway: Emulator) -> None:
    """While it is down connections are refused; then the same port answers again."""
    for _ in range(2):
        assert generate(client).status_code == 200
        with gateway.down(), pytest.raises(httpx.ConnectError):
            generate(client)
    assert generate(client).status_code == 200


# Links.


def test_expired_link(client: httpx.Client, gateway: Emulator) -> None:
    """An expired link is answered as S3 does."""
    gateway.link_lifetime = 0
    response = get(link(client))
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/xml"
    assert "<Code>AccessDenied</Code><Message>Request has expired</Message>" in response.text
    assert "date" in response.headers


def test_tampered_link(client: httpx.Client) -> None:
    """Neither the path nor the expiry of a link can be changed."""
    url = link(client)
    other = link(client)
    assert get(url.replace("Expires=", "Expires=9")).status_code == 403
    assert get(url.partition("?")[0]).status_code == 403
    assert get(f"{url.partition('?')[0]}?{other.partition('?')[2]}").status_code == 403
    assert get(f"{url}0").status_code == 403


def test_authorization_on_a_link(client: httpx.Client, gateway: Emulator) -> None:
    """The gateway's key has no business at the clip's link: it is refused and remembered."""
    url = link(client)
    assert client.get(url).status_code == 400
    assert get(url).status_code == 200
    assert [request.authorization for request in gateway.clip_requests] == [True, False]


def test_clip_requests(client: httpx.Client, gateway: Emulator) -> None:
    """Each request for a clip is remembered."""
    url = link(client)
    get(url, range="bytes=5-", if_range='"x"')
    (request,) = gateway.clip_requests
    assert (request.method, request.status) == ("GET", 200)
    assert (request.range, request.if_range) == ("bytes=5-", '"x"')
    assert request.path == gateway.ledger[0].clip


def test_head(client: httpx.Client) -> None:
    """HEAD tells the length and sends no body."""
    response = anyone().head(link(client))
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(CLIP)
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, len(CLIP)),
        ("bytes=-7", len(CLIP) - 7, len(CLIP)),
        (f"bytes=5-{10**9}", 5, len(CLIP)),
        (f"bytes=-{10**9}", 0, len(CLIP)),
    ],
)
def test_range(client: httpx.Client, tmp_path: Path, header: str, start: int, stop: int) -> None:
    """A range is answered 206 with just those bytes."""
    response = get(link(client), range=header)
    assert response.status_code == 206
    assert response.content == CLIP[start:stop]
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CLIP)}"


@pytest.mark.parametrize("header", ["bytes=5-4", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,4-5"])
def test_ignored_range(client: httpx.Client, header: str) -> None:
    """A range that makes no sense is ignored."""
    response = get(link(client), range=header)
    assert (response.status_code, response.content) == (200, CLIP)


@pytest.mark.parametrize("header", [f"bytes={len(CLIP)}-", "bytes=-0"])
def test_unsatisfiable_range(client: httpx.Client, header: str) -> None:
    """A range behind the end is answered 416."""
    response = get(link(client), range=header)
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{len(CLIP)}"


def test_if_range(client: httpx.Client) -> None:
    """A range is served only while the ETag is the same."""
    url = link(client)
    etag = anyone().head(url).headers["etag"]
    assert get(url, range="bytes=5-", if_range=etag).status_code == 206
    assert get(url, range="bytes=5-", if_range='"other"').status_code == 200


@pytest.mark.parametrize("size", [0, 1, 700_001, 3 * 1024 * 1024])
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_served_clip(client: httpx.Client, gateway: Emulator, tmp_path: Path, size: int, kind: str) -> None:
    """The clip can be any bytes, from memory or a file."""
    content = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "clip").write_bytes(content[:size])
    gateway.serve_clip(content[:size] if kind == "bytes" else tmp_path / "clip")
    url = link(client)
    assert get(url).content == content[:size]
    if size > 1000:
        assert get(url, range="bytes=999-").content == content[999:size]


# Faults of links.


def test_break_after(client: httpx.Client, gateway: Emulator) -> None:
    """A download breaks off after exactly so many bytes, and the rest can be fetched."""
    url = link(client)
    gateway.fail_next(ClipFault.break_after(70_000))
    received = bytearray()
    with anyone().stream("GET", url) as response:
        chunks = map(received.extend, response.iter_raw())
        with pytest.raises(httpx.RemoteProtocolError, match="received 70000 bytes"):
            list(chunks)
    assert received == CLIP[:70_000]
    assert received + get(url, range="bytes=70000-").content == CLIP


def test_break_after_with_reset(client: httpx.Client, gateway: Emulator) -> None:
    """A download can end in a TCP reset."""
    url = link(client)
    gateway.fail_next(ClipFault.break_after(10, reset=True))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        get(url)


def test_wrong_length(client: httpx.Client, gateway: Emulator) -> None:
    """A link can announce more than it has, or hide that the end is missing."""
    url = link(client)
    gateway.fail_next(ClipFault.wrong_length(1))
    with pytest.raises(
        httpx.RemoteProtocolError, match=f"received {len(CLIP)} bytes, expected {len(CLIP) + 1}"
    ):
        get(url)
    gateway.fail_next(ClipFault.wrong_length(-5))
    assert get(url).content == CLIP[:-5]


def test_changed(client: httpx.Client, gateway: Emulator) -> None:
    """A clip can change between two requests: If-Range notices."""
    url = link(client)
    etag = anyone().head(url).headers["etag"]
    gateway.fail_next(ClipFault.changed())
    response = get(url, range="bytes=50-", if_range=etag)
    assert response.status_code == 200
    assert response.headers["etag"] != etag
    assert len(response.content) == len(CLIP)
    assert response.content[:32] == CLIP[:32]
    assert response.content[32:] == bytes(255 - byte for byte in CLIP[32:])
    assert get(url, range="bytes=20-40").content == response.content[20:41]


def test_other_clip_faults(client: httpx.Client, gateway: Emulator) -> None:
    """A link can answer with an error, a page, a redirect, the whole in place of a range, or never."""
    url = link(client)
    gateway.fail_next(ClipFault.status(503))
    assert "SlowDown" in get(url).text
    gateway.fail_next(ClipFault.html())
    assert get(url).headers["content-type"].startswith("text/html")
    gateway.fail_next(ClipFault.no_ranges())
    response = get(url, range="bytes=5-")
    assert (response.status_code, response.content) == (200, CLIP)
    assert "accept-ranges" not in response.headers
    gateway.fail_next(ClipFault.redirect())
    response = get(url)
    assert response.status_code == 302
    assert get(response.headers["location"]).content == CLIP
    gateway.fail_next(ClipFault.redirect("http://169.254.169.254/", code=307))
    assert get(url).headers["location"] == "http://169.254.169.254/"
    gateway.fail_next(ClipFault.slow(2_000_000))
    assert get(url).content == CLIP
    gateway.fail_next(ClipFault.hang())
    with pytest.raises(httpx.ReadTimeout):
        anyone().get(url, timeout=0.1)
    assert gateway.clip_requests[-1].status is None


def test_head_takes_no_fault(client: httpx.Client, gateway: Emulator) -> None:
    """A fault waits for a GET that would be served."""
    url = link(client)
    gateway.fail_next(ClipFault.status(500))
    assert anyone().head(url).status_code == 200
    assert get(url.partition("?")[0]).status_code == 403
    assert get(url).status_code == 500
