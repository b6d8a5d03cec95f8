"""The emulator's faults on the wire, as a client without manners sees them, and what each of them bills."""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import socket
import time
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints
from urllib.parse import urlsplit

import av
import httpx
import pytest

from airflow_provider_codegateway.emulator import ClipFault, Emulator, Fault
from airflow_provider_codegateway.emulator.__main__ import main
from airflow_provider_codegateway.emulator.faults import (
    HostileShape,
    OddShape,
    catalogue,
    fault_by_name,
    fault_from_json,
)
from airflow_provider_codegateway.emulator.intermediaries import ANSWERS, Intermediary

if TYPE_CHECKING:
    from collections.abc import Iterator

VEO = "google/veo-3.1-fast"
SEEDANCE = "bytedance/seedance-2.0"
HAILUO = "minimax/hailuo-2.3-fast"
PAGE = Path(__file__).parent.parent / "docs" / "emulator.md"
CLIP = b"\x00\x00\x00\x18ftypisom" + bytes(range(256)) * 400


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def gateway(emulator: Emulator) -> Emulator:
    """An emulator with an empty ledger that answers with a small clip."""
    emulator.reset()
    emulator.serve_clip(CLIP)
    return emulator


@dataclass(frozen=True)
class Wire:
    """What came over the socket, and how it ended."""

    data: bytes
    end: str
    """``closed``, ``reset`` or, where the server left it so, ``open``."""

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode()

    @property
    def content(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def connect(gateway: Emulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", urlsplit(gateway.url).port or 0), timeout=20)


def post_head(gateway: Emulator, length: int) -> bytes:
    return (
        f"POST /v1/video/generate HTTP/1.1\r\nHost: {urlsplit(gateway.url).netloc}\r\n"
        f"Authorization: Bearer {gateway.api_key}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def receive(connection: socket.socket, until: bytes | None = None) -> Wire:
    """Read to the end of the connection, or until so much is there that it ends with `until`."""
    data = bytearray()
    while until is None or not data.endswith(until):
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return Wire(bytes(data), "reset")
        if not part:
            return Wire(bytes(data), "closed")
        data += part
    return Wire(bytes(data), "open")


def generate(gateway: Emulator, model: str = HAILUO) -> Wire:
    content = json.dumps({"model": model, "prompt": "A paper boat"}).encode()
    with connect(gateway) as connection:
        connection.sendall(post_head(gateway, len(content)) + content)
        return receive(connection)


def link(gateway: Emulator, model: str = HAILUO) -> str:
    url: str = generate(gateway, model).json["data"][0]["url"]
    return url


def get(gateway: Emulator, url: str, headers: str = "") -> Wire:
    parts = urlsplit(url)
    with connect(gateway) as connection:
        connection.sendall(
            f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode()
        )
        return receive(connection)


# Others on the way.


@pytest.mark.parametrize("who", get_args(Intermediary))
def test_foreign_answer(gateway: Emulator, who: Intermediary) -> None:
    """Each intermediary has its own status and words, and bills as usual in reality."""
    gateway.fail_next(Fault.foreign(who))
    wire = generate(gateway)
    expected = ANSWERS[who]
    assert wire.status == expected.code
    assert f"content-type: {expected.content_type.partition(';')[0]}" in wire.head
    assert wire.content.decode() == expected.text
    assert gateway.billed == expected.billed
    assert gateway.ledger[0].status == expected.code


def test_foreign_answer_bills_as_told(gateway: Emulator) -> None:
    """An envoy that refuses at once bills nothing; a rate limiter behind the gateway bills."""
    gateway.fail_next(Fault.foreign("envoy", billed=False))
    gateway.fail_next(Fault.foreign("rate_limiter", billed=True, retry_after=7))
    assert generate(gateway).status == 503
    assert gateway.billed == 0
    wire = generate(gateway)
    assert wire.status == 429
    assert "retry-after: 7" in wire.head
    assert gateway.billed == 1
    for who in ("corporate_proxy", "captive_portal"):
        with pytest.raises(ValueError, match="never billed"):
            Fault.foreign(who, billed=True)


def test_answer_while_the_render_goes_on(gateway: Emulator) -> None:
    """A router that loses patience answers before the render is done, which is billed later."""
    gateway.fail_next(Fault.foreign("heroku", gives_up_after=0.01))
    with gateway.holding():
        assert generate(gateway).status == 503
        assert (gateway.accepted, gateway.billed) == (1, 0)
    gateway.wait_for(billed=1, rendering=0)
    assert gateway.ledger[0].status == 503


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_redirect(gateway: Emulator, code: int) -> None:
    """The POST is sent elsewhere, by default to https, and nothing is billed."""
    gateway.fail_next(Fault.redirect(code=code))
    gateway.fail_next(Fault.redirect("/elsewhere", code=code))
    wire = generate(gateway)
    assert wire.status == code
    assert f"location: https://{urlsplit(gateway.url).netloc}/v1/video/generate" in wire.head
    assert "location: /elsewhere" in generate(gateway).head
    assert (gateway.refused, gateway.accepted) == (2, 0)


@pytest.mark.parametrize("code", [402, 405, 415, 511])
def test_refusals_of_a_proxy(gateway: Emulator, code: int) -> None:
    """A proxy that refuses bills nothing, and cannot be told to."""
    gateway.fail_next(Fault.status(code, html=True))
    assert generate(gateway).status == code
    assert gateway.accepted == 0
    with pytest.raises(ValueError, match="never billed"):
        Fault.status(code, html=True, billed=True)


@pytest.mark.parametrize(("fault", "status"), [(Fault.cut_upload(), 413), (Fault.cut_upload(None), None)])
def test_cut_upload(gateway: Emulator, fault: Fault, status: int | None) -> None:
    """The answer, or a plain reset, comes while a large body is on its way: it is never whole."""
    gateway.fail_next(fault)
    body = bytes(64 * 1024 * 1024)
    with connect(gateway) as connection:
        connection.sendall(post_head(gateway, len(body)))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(body)
        wire = receive(connection)
    assert (wire.status if wire.data else None) == status
    assert (gateway.refused, gateway.accepted, gateway.ledger[0].status) == (1, 0, status)


def test_cut_upload_takes_no_model(gateway: Emulator) -> None:
    """It strikes before the body, and so before the model is known; else it waits for its turn."""
    with pytest.raises(ValueError, match="cut_upload takes no model"):
        gateway.fail_next(Fault.cut_upload(), model=VEO)
    gateway.fail_next(Fault.status(429))
    gateway.fail_next(Fault.cut_upload(after=0))
    assert generate(gateway).status == 429
    assert generate(gateway).status == 413
    assert generate(gateway).status == 200


# Answers.


@pytest.mark.parametrize(("then", "end"), [("length", "closed"), ("chunk", "closed"), ("reset", "reset")])
def test_whole_json_in_an_unfinished_answer(gateway: Emulator, then: Any, end: str) -> None:
    """The JSON is whole, HTTP's message is not, and the render is billed."""
    gateway.fail_next(Fault.whole_json(then))
    wire = generate(gateway)
    assert (wire.status, wire.end) == (200, end)
    if then == "length":
        assert f"content-length: {len(wire.content) + 2}" in wire.head
    else:
        size, _, rest = wire.content.partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2
        assert rest.endswith(b"}\r\n")
    text = wire.content[wire.content.index(b"{") : wire.content.rindex(b"}") + 1]
    assert get(gateway, json.loads(text)["data"][0]["url"]).content == CLIP
    assert (gateway.billed, gateway.ledger[0].status, gateway.ledger[0].answered) == (1, 200, False)


def test_whole_json_and_an_open_connection(gateway: Emulator) -> None:
    """The JSON is whole, and the connection stays open without an end of the answer."""
    gateway.fail_next(Fault.whole_json("held"))
    content = json.dumps({"model": HAILUO}).encode()
    with connect(gateway) as connection:
        connection.sendall(post_head(gateway, len(content)) + content)
        wire = receive(connection, until=b"}\r\n")
        assert wire.end == "open"
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert gateway.billed == 1


@pytest.mark.parametrize(
    ("shape", "code", "content"),
    [
        ("job", 202, '"id": "job_5f1c"'),
        ("nothing", 200, ""),
        ("nothing", 204, ""),
        ("relative", 200, '"url": "/clips/'),
        ("other_scheme", 201, '"url": "ftp://127.0.0.1'),
        ("not_text", 200, '"url": {"href": "http://'),
    ],
)
def test_2xx_without_a_usable_url(gateway: Emulator, shape: Any, code: int, content: str) -> None:
    """A billed answer of any 2xx can lack a usable URL in more ways."""
    gateway.fail_next(Fault.no_url(shape, code=code))
    wire = generate(gateway)
    assert wire.status == code
    text = wire.content.decode()
    assert content.replace(" ", "") in text.replace(" ", "")
    assert bool(text) == bool(content)
    assert gateway.billed == 1


@pytest.mark.parametrize("shape", get_args(OddShape))
def test_odd_answer(gateway: Emulator, shape: OddShape) -> None:
    """Whatever is odd about an answer, it is billed and its link works."""
    gateway.fail_next(Fault.odd_answer(shape))
    content = generate(gateway).content
    text = content.decode("utf-16" if shape == "utf16" else "utf-8-sig")
    url = text[text.index("http") :].partition('"')[0].replace("\\n", "\n").strip()
    assert get(gateway, url).content == CLIP
    assert gateway.billed == 1


def test_what_is_odd_about_an_answer(gateway: Emulator) -> None:
    """Each shape is what its name says."""

    def answer(shape: OddShape) -> bytes:
        gateway.fail_next(Fault.odd_answer(shape))
        return generate(gateway).content

    now = time.time()
    assert json.loads(answer("url_padded"))["data"][0]["url"].startswith(" \r\n\thttp")
    assert json.loads(answer("expires_ms"))["expires_at"] == pytest.approx((now + 3600) * 1000, rel=1e-3)
    iso = datetime.fromisoformat(json.loads(answer("expires_iso"))["expires_at"])
    assert iso.timestamp() == pytest.approx(now + 3600, abs=60)
    assert json.loads(answer("expires_past"))["expires_at"] < now
    assert json.loads(answer("expires_absurd"))["expires_at"] == 10**400
    assert json.loads(answer("expires_null"))["expires_at"] is None
    assert json.loads(answer("created_huge"))["created"] == 10**400
    assert b'"created": 99999' in answer("created_endless")
    assert b'"created": NaN' in answer("created_nan")
    assert "created" not in json.loads(answer("created_missing"))
    assert json.loads(answer("model_hostile"))["model"] == f"{HAILUO}\0\ud83d"
    with pytest.raises(RecursionError):
        json.loads(answer("nested"))
    assert answer("bom").startswith(b"\xef\xbb\xbf{")
    assert answer("trailing_text").endswith(b"-->\n")


def test_encoded_answers(gateway: Emulator) -> None:
    """Answers come in codings that nobody asked for, labelled or not, and are billed."""
    gateway.fail_next(Fault.encoded("gzip"))
    wire = generate(gateway)
    assert "content-encoding: gzip" in wire.head
    assert json.loads(gzip.decompress(wire.content))["model"] == HAILUO
    gateway.fail_next(Fault.encoded("gzip_unlabelled"))
    wire = generate(gateway)
    assert "content-encoding" not in wire.head
    assert json.loads(gzip.decompress(wire.content))["model"] == HAILUO
    gateway.fail_next(Fault.encoded("unknown"))
    wire = generate(gateway)
    assert "content-encoding: x-acme" in wire.head
    assert wire.json["model"] == HAILUO
    assert gateway.billed == 3


def test_bomb(gateway: Emulator) -> None:
    """A few kilobytes unpack to as much as is asked for, and begin with the whole JSON."""
    size = 64 * 1024 * 1024
    gateway.fail_next(Fault.encoded("bomb", size=size))
    wire = generate(gateway)
    assert "content-encoding: gzip, gzip" in wire.head
    assert len(wire.content) < 10_000
    unpacked, total = zlib.decompressobj(wbits=31), 0
    inner = gzip.decompress(wire.content)
    start = unpacked.decompress(inner, 65536)
    assert json.loads(start)["model"] == HAILUO
    total = len(start)
    while not unpacked.eof:
        total += len(unpacked.decompress(unpacked.unconsumed_tail, 1024 * 1024))
    assert total == size


@pytest.mark.parametrize(("code", "billed"), [(400, 0), (429, 0), (502, 1)])
def test_encoded_errors(gateway: Emulator, code: int, billed: int) -> None:
    """The body of an error can be packed, too: a 5xx is billed, a refusal is not."""
    gateway.fail_next(Fault.encoded("gzip_unlabelled", code=code))
    wire = generate(gateway)
    assert wire.status == code
    assert gzip.decompress(wire.content).startswith(b"{")
    assert gateway.billed == billed


@pytest.mark.parametrize("shape", get_args(HostileShape))
@pytest.mark.parametrize("code", [400, 503])
def test_hostile_text(gateway: Emulator, shape: HostileShape, code: int) -> None:
    """The words of an error come as they are, and nothing is billed."""
    gateway.fail_next(Fault.hostile_text(shape, code=code))
    wire = generate(gateway)
    assert wire.data.startswith(f"HTTP/1.1 {code} ".encode())
    assert gateway.accepted == 0
    expected = {
        "nul": rb"paper\u0000boat",
        "surrogate": rb"boat \ud83d",
        "control": rb"\u001b[2J",
        "dotted": b"a." * 50_000,
        "markup": b"<script>" * 12_500,
        "not_utf8": b"\xff\xfe\x80",
        "nested": b"[" * 100_000,
        "status_line": b"a." * 32768 + b"\r\n",
        "header": b"x-request-id: " + b"a." * 32768,
    }
    assert expected[shape] in wire.data


def test_slow_head(gateway: Emulator) -> None:
    """An answer can trickle from its first byte on; it is whole in the end."""
    gateway.fail_next(Fault.slow_head(20_000))
    wire = generate(gateway)
    assert wire.json["model"] == HAILUO
    assert gateway.billed == 1
    gateway.fail_next(Fault.slow_head(1))
    content = json.dumps({"model": HAILUO}).encode()
    with connect(gateway) as connection:
        connection.sendall(post_head(gateway, len(content)) + content)
        gateway.wait_for(billed=2)
        assert connection.recv(100) == b"H"


# Clips.


@pytest.mark.parametrize("framing", ["close", "http_1_0", "chunked"])
@pytest.mark.parametrize("n", [None, 70_000])
def test_clip_without_length(gateway: Emulator, framing: Any, n: int | None) -> None:
    """Without a length nothing tells that the second half is missing, but the last chunk that does not come."""
    url = link(gateway)
    gateway.fail_next(ClipFault.no_length(n, framing=framing))
    wire = get(gateway, url)
    assert wire.data.startswith(b"HTTP/1.0 200 OK" if framing == "http_1_0" else b"HTTP/1.1 200 OK")
    assert "content-length" not in wire.head.lower()
    assert wire.end == "closed"
    content = wire.content
    if framing == "chunked":
        assert content.endswith(b"0\r\n\r\n") == (n is None)
        size, _, content = content.partition(b"\r\n")
        content = content[: int(size, 16)]
    assert content == CLIP[:n]


def test_clip_without_length_can_be_resumed(gateway: Emulator) -> None:
    """The rest is served as a range, which can lack its length as well."""
    url = link(gateway)
    gateway.fail_next(ClipFault.no_length())
    wire = get(gateway, url, "Range: bytes=70000-\r\n")
    assert wire.status == 206
    assert wire.content == CLIP[70_000:]


def test_trickling_clip(gateway: Emulator) -> None:
    """A host can send one byte a second."""
    url = link(gateway)
    gateway.fail_next(ClipFault.slow(1))
    parts = urlsplit(url)
    with connect(gateway) as connection:
        connection.sendall(f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        receive(connection, until=b"\r\n\r\n")
        assert connection.recv(100) == CLIP[:1]


@pytest.mark.parametrize(("code", "word"), [(404, b"NoSuchKey"), (410, b"Gone")])
def test_clip_is_gone(gateway: Emulator, code: int, word: bytes) -> None:
    """A link can be gone, in S3's words."""
    url = link(gateway)
    gateway.fail_next(ClipFault.status(code))
    wire = get(gateway, url)
    assert wire.status == code
    assert b"<Code>" + word in wire.content


def test_web_filter(gateway: Emulator) -> None:
    """A web filter says that a session has expired; the link is alive all the while."""
    url = link(gateway)
    gateway.fail_next(ClipFault.web_filter())
    wire = get(gateway, url)
    assert wire.status == 403
    assert b"Your session has expired" in wire.content
    assert "content-type: text/html" in wire.head
    assert get(gateway, url).content == CLIP


def test_redirect_in_raw_utf8(gateway: Emulator) -> None:
    """The location is not encoded; who encodes it once gets the clip, and who does so twice does not."""
    url = link(gateway)
    gateway.fail_next(ClipFault.utf8_redirect(307))
    wire = get(gateway, url)
    assert wire.status == 307
    (location,) = (line[10:] for line in wire.head.splitlines() if line.startswith("location: "))
    assert "résumé-日本" in location
    once = httpx.URL(gateway.url).join(location)
    assert httpx.get(once).content == CLIP
    twice = str(once).replace("%", "%25")
    assert httpx.get(twice).status_code == 404


def test_other_content_than_a_clip(gateway: Emulator) -> None:
    """A link can answer 200 with JSON, or with the clip in a coding that nobody asked for."""
    url = link(gateway)
    gateway.fail_next(ClipFault.json())
    assert get(gateway, url).json == {"error": "the clip is not available"}
    gateway.fail_next(ClipFault.encoded("gzip_unlabelled"))
    assert gzip.decompress(get(gateway, url).content) == CLIP
    gateway.fail_next(ClipFault.encoded("gzip"))
    assert httpx.get(url).content == CLIP


@pytest.mark.parametrize("box", ["styp", "moov", "free", "skip", "wide"])
def test_first_box(gateway: Emulator, box: Any) -> None:
    """An MP4 that begins with another box plays all the same, and is billed as ever."""
    gateway.serve_clip(None)
    usual = get(gateway, link(gateway)).content
    gateway.fail_next(Fault.container(box))
    content = get(gateway, link(gateway)).content
    assert content[4:8] == box.encode()
    assert len(content) == len(usual)
    assert frames(content) == frames(usual) > 0
    assert gateway.billed == 2


@pytest.mark.parametrize(
    ("form", "name", "start"),
    [("webm", "matroska,webm", b"\x1a\x45\xdf\xa3"), ("fragmented", "mov,mp4", b"\x00")],
)
def test_other_container(gateway: Emulator, form: Any, name: str, start: bytes) -> None:
    """A clip can be WebM, or an MP4 of fragments; it is as long as was asked for."""
    gateway.fail_next(Fault.container(form))
    wire = get(gateway, link(gateway, VEO))
    assert wire.content.startswith(start)
    assert ("content-type: video/webm" in wire.head) == (form == "webm")
    assert (b"moof" in wire.content) == (form == "fragmented")
    with av.open(io.BytesIO(wire.content)) as container:
        assert container.format.name.startswith(name)
    assert frames(wire.content) == 6 * 24


def test_webm_with_sound(gateway: Emulator) -> None:
    """A WebM has its tone, too."""
    gateway.fail_next(Fault.container("webm"))
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    body = {"model": VEO, "prompt": "x", "duration": "4s", "generate_audio": True}
    answer = httpx.post(f"{gateway.url}/v1/video/generate", json=body, headers=headers, timeout=60).json()
    with av.open(io.BytesIO(httpx.get(answer["data"][0]["url"]).content)) as container:
        assert [stream.codec_context.name for stream in container.streams.audio] == ["opus"]


def frames(content: bytes) -> int:
    with av.open(io.BytesIO(content), "r") as container:
        return sum(1 for _ in container.decode(video=0))


# Turns.


def test_one_model_is_down(gateway: Emulator) -> None:
    """Veo is down until that is cleared, while the other models work."""
    gateway.fail_next(Fault.status(503), times=None, model=VEO)
    assert [generate(gateway, model).status for model in (VEO, HAILUO, VEO, SEEDANCE)] == [503, 200, 503, 200]
    gateway.clear_faults()
    assert generate(gateway, VEO).status == 200
    assert gateway.billed == 3


def test_faults_of_a_model_wait_for_it(gateway: Emulator) -> None:
    """A fault for so many requests of one model lets others pass, and later faults strike them."""
    gateway.fail_next(Fault.status(503), times=2, model=VEO)
    gateway.fail_next(Fault.status(429))
    assert [generate(gateway, model).status for model in (HAILUO, VEO, HAILUO, VEO, VEO)] == [
        *(429, 503, 200, 503, 200)
    ]


def test_clip_faults_of_a_model(gateway: Emulator) -> None:
    """The links of one model fail, those of another do not."""
    veo, hailuo = link(gateway, VEO), link(gateway, HAILUO)
    gateway.fail_next(ClipFault.status(404), times=None, model=VEO)
    assert [get(gateway, url).status for url in (veo, hailuo, veo)] == [404, 200, 404]


def test_faults_that_cannot_be(gateway: Emulator) -> None:
    """What makes no sense is refused, with the values that do."""
    with pytest.raises(ValueError, match="times must be 1 or more"):
        gateway.fail_next(Fault.hang(), times=0)
    with pytest.raises(ValueError, match=r"who must be one of envoy, .*, not 'apache'"):
        fault_by_name("foreign", who="apache")
    with pytest.raises(ValueError, match=r"unknown fault 'flood'"):
        fault_by_name("flood")
    with pytest.raises(ValueError, match=r"slow: .*bytes_per_second"):
        fault_by_name("clip.slow")
    with pytest.raises(ValueError, match=r"no fault of this form"):
        fault_from_json({"on": "render", "kind": "hang", "colour": "red"})
    with pytest.raises(ValueError, match=r"kind must be one of"):
        fault_from_json({"on": "clip", "kind": "flood"})
    with pytest.raises(ValueError, match=r"from 200 to 299, not 404"):
        Fault.no_url(code=404)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "status": {"code": 500},
    "foreign": {"who": "envoy"},
    "slow_body": {"bytes_per_second": 9},
    "slow_head": {"bytes_per_second": 9},
    "odd_answer": {"shape": "bom"},
    "encoded": {"encoding": "gzip"},
    "hostile_text": {"shape": "nul"},
    "early_expiry": {"seconds": 1},
    "container": {"form": "webm"},
    "wrong_clip": {"how": "small"},
    "clip.break_after": {"n": 1},
    "clip.slow": {"bytes_per_second": 9},
    "clip.status": {"code": 404},
    "clip.encoded": {"encoding": "gzip"},
}


@pytest.mark.parametrize("name", catalogue())
def test_every_fault_crosses_the_wire(name: str) -> None:
    """Each fault can be made by its name, and is the same after it was JSON."""
    fault = fault_by_name(name, **ARGUMENTS.get(name, {}))
    assert fault_from_json(json.loads(json.dumps(fault.as_json()))) == fault


# The documentation.

PARAMETERS_OF_SHAPES = ("who", "then", "shape", "encoding", "form", "framing")


def rows(heading: str) -> dict[str, str]:
    """The rows of a table on the page: what a fault is called, and the rest."""
    table = PAGE.read_text(encoding="utf-8").partition(f"| `{heading}.` |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([^`]+)` \|(.*)\|$", table, re.MULTILINE))


@pytest.mark.parametrize(("heading", "prefix"), [("Fault", ""), ("ClipFault", "clip.")])
def test_the_page_lists_every_fault(heading: str, prefix: str) -> None:
    """The tables have each fault with its parameters, in the order of faults.py, and every value of a shape."""
    of_kind = {
        name: signature for name, signature in catalogue().items() if name.startswith("clip.") == bool(prefix)
    }
    expected = [
        f"{name.removeprefix('clip.')}({', '.join(signature.parameters)})"
        for name, signature in of_kind.items()
    ]
    listed = rows(heading)
    assert list(listed) == expected
    for call, (name, signature) in zip(expected, of_kind.items(), strict=True):
        kind = ClipFault if prefix else Fault
        hints = get_type_hints(getattr(kind, name.removeprefix("clip.")))
        for parameter in PARAMETERS_OF_SHAPES:
            if parameter in signature.parameters:
                assert {
                    value for value in get_args(hints[parameter]) if f"`{value}`" not in listed[call]
                } == set()


@pytest.mark.parametrize(
    "line", re.findall(r"^codegateway-emulator (fail .*)$", PAGE.read_text(), re.MULTILINE)
)
def test_the_commands_of_the_page(line: str) -> None:
    """The commands that the page shows queue their faults."""
    with Emulator() as emulator:
        assert main([*shlex.split(line), "--url", emulator.url]) == 0
