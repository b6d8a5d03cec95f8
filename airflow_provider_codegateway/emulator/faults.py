"""What can be made to go wrong, at the gateway (`Fault`) and at the clip's link (`ClipFault`)."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from .intermediaries import ANSWERS, REFUSALS, Intermediary

NoUrlShape = Literal[
    "empty",
    "missing",
    "null",
    "no_item_url",
    "blank",
    "error",
    "job",
    "nothing",
    "relative",
    "other_scheme",
    "not_text",
]
OddShape = Literal[
    "url_padded",
    "url_http",
    "expires_ms",
    "expires_iso",
    "expires_past",
    "expires_absurd",
    "expires_text",
    "expires_null",
    "created_huge",
    "created_endless",
    "created_nan",
    "created_text",
    "created_missing",
    "model_hostile",
    "nested",
    "bom",
    "utf16",
    "trailing_text",
]
HostileShape = Literal[
    "nul", "surrogate", "control", "dotted", "markup", "not_utf8", "nested", "status_line", "header"
]
BodyEnd = Literal["length", "chunk", "reset", "held"]
Encoding = Literal["gzip", "gzip_unlabelled", "bomb", "unknown"]
Container = Literal["webm", "fragmented", "styp", "moov", "free", "skip", "wide"]
WrongClip = Literal["turned", "short", "small", "mute", "silent", "black", "frozen"]
Framing = Literal["close", "http_1_0", "chunked"]

_Kind = Literal[
    "status",
    "redirect",
    "cut_upload",
    "reset",
    "hang",
    "slow_body",
    "slow_head",
    "truncated_body",
    "whole_json",
    "html",
    "no_url",
    "odd_answer",
    "encoded",
    "hostile_text",
    "leading_whitespace",
    "early_expiry",
    "container",
    "wrong_clip",
]
_ClipKind = Literal[
    "break_after",
    "no_length",
    "slow",
    "hang",
    "status",
    "web_filter",
    "wrong_length",
    "changed",
    "no_ranges",
    "html",
    "json",
    "encoded",
    "redirect",
    "utf8_redirect",
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong with one POST. Made by the class methods below.

    A fault is taken by the next POST whose body arrived, whoever sent it; `cut_upload` by the next that arrives.
    """

    kind: _Kind
    code: int = 200
    retry_after: float | str | None = None
    body: dict[str, Any] | str | None = None
    content_type: str = "text/plain"
    as_html: bool = False
    billed: bool = True
    bytes_per_second: float | None = None
    shape: str = "empty"
    seconds: float = 0.0
    size: int = 0
    location: str | None = None
    gives_up_after: float | None = None

    def __post_init__(self) -> None:
        _require_one_of("kind", self.kind, _Kind)

    @classmethod
    def status(
        cls,
        code: int,
        *,
        retry_after: float | str | None = None,
        body: dict[str, Any] | str | None = None,
        html: bool = False,
        billed: bool = False,
    ) -> Self:
        """Answer with an error status.

        :param retry_after: value of the ``Retry-After`` header: seconds, or an HTTP date.
        :param body: what to answer, as JSON (dict) or as it stands (str); else the guide's envelope.
        :param html: answer the HTML page of a proxy in place of JSON.
        :param billed: render and bill first. In the gateway's own words only 5xx can, and not 503, which says that
            nothing was started. Of a proxy (`html`, or text as `body`) each status can that is not itself a refusal.
        """
        is_foreign = html or isinstance(body, str)
        if billed and (code in REFUSALS if is_foreign else code < 500 or code == 503):
            whose = "status" if is_foreign else "CodeGateway's own status"
            raise ValueError(f"{whose} {code} is never billed; 500, 502 and 504 may be")
        return cls(kind="status", code=code, retry_after=retry_after, body=body, as_html=html, billed=billed)

    @classmethod
    def foreign(
        cls,
        who: Intermediary,
        *,
        billed: bool | None = None,
        retry_after: float | str | None = None,
        gives_up_after: float | None = None,
    ) -> Self:
        """Answer in the words of somebody between client and gateway.

        :param who: ``envoy`` (503, text), ``heroku`` (503, HTML), ``nginx`` (504), ``cloudflare`` (524),
            ``rate_limiter`` (429, text), ``corporate_proxy`` (403, HTML) or ``captive_portal`` (511, HTML).
        :param billed: whether the gateway renders and bills all the same; by default the first four.
        :param gives_up_after: seconds after which a billed answer comes though the render goes on; else it
            comes when the render is done.
        """
        _require_one_of("who", who, Intermediary)
        answer = ANSWERS[who]
        is_billed = answer.billed if billed is None else billed
        if is_billed and answer.code in REFUSALS:
            raise ValueError(f"{who} answers {answer.code} in place of the gateway: that is never billed")
        return cls(
            kind="status",
            code=answer.code,
            retry_after=retry_after,
            body=answer.text,
            content_type=answer.content_type,
            billed=is_billed,
            gives_up_after=gives_up_after,
        )

    @classmethod
    def redirect(cls, location: str | None = None, *, code: int = 308) -> Self:
        """Redirect the POST in place of taking it. Not billed.

        :param location: by default the same address under https.
        """
        return cls(kind="redirect", code=code, location=location, billed=False)

    @classmethod
    def cut_upload(cls, code: int | None = 413, *, after: int = 65536) -> Self:
        """Answer and close while the body is still being sent. Not billed.

        :param code: the answer's status, as a proxy's HTML page; None resets the connection without an answer.
        :param after: bytes of the body that are read first.
        """
        return cls(kind="cut_upload", code=code or 0, size=after, billed=False)

    @classmethod
    def reset_before(cls) -> Self:
        """Reset the connection before anything is rendered. Not billed."""
        return cls(kind="reset", billed=False)

    @classmethod
    def reset_after(cls) -> Self:
        """Render, bill, and reset the connection in place of an answer."""
        return cls(kind="reset")

    @classmethod
    def hang(cls) -> Self:
        """Render, bill, and never answer."""
        return cls(kind="hang")

    @classmethod
    def slow_body(cls, bytes_per_second: float) -> Self:
        """Answer as usual, slowly."""
        return cls(kind="slow_body", bytes_per_second=bytes_per_second)

    @classmethod
    def slow_head(cls, bytes_per_second: float) -> Self:
        """Answer as usual, slowly from the first byte of the status line on."""
        return cls(kind="slow_head", bytes_per_second=bytes_per_second)

    @classmethod
    def truncated_body(cls) -> Self:
        """Announce the whole answer, send half of it, and close the connection."""
        return cls(kind="truncated_body")

    @classmethod
    def whole_json(cls, then: BodyEnd = "length") -> Self:
        """Send the whole JSON, and end the answer in a way that HTTP does not allow.

        :param then: ``length`` (close before the announced length is reached), ``chunk`` (close without the last
            chunk), ``reset`` (the same, with a TCP reset) or ``held`` (never send the last chunk, and never close).
        """
        _require_one_of("then", then, BodyEnd)
        return cls(kind="whole_json", shape=then)

    @classmethod
    def html(cls, code: int = 200) -> Self:
        """Render, bill, and answer with an HTML page under `code`."""
        return cls(kind="html", code=code)

    @classmethod
    def no_url(cls, shape: NoUrlShape = "empty", *, code: int = 200) -> Self:
        """Render, bill, and answer 2xx without a usable clip URL.

        :param shape: ``empty`` (``data`` is ``[]``), ``missing`` (no ``data``), ``null`` (``data`` is null),
            ``no_item_url`` (``data[0]`` has no ``url``), ``blank`` (``url`` is ``""``),
            ``error`` (an error envelope after leading white space, as from gateways that keep a connection
            alive that way), ``job`` (the id of a job), ``nothing`` (an empty body), ``relative`` (a path),
            ``other_scheme`` (``ftp://``) or ``not_text`` (``url`` is an object).
        :param code: a status of 200 to 299.
        """
        _require_one_of("shape", shape, NoUrlShape)
        if not 200 <= code <= 299:
            raise ValueError(f"code must be from 200 to 299, not {code}")
        return cls(kind="no_url", shape=shape, code=code)

    @classmethod
    def odd_answer(cls, shape: OddShape) -> Self:
        """Render, bill, and answer 200 with a working link and something odd beside it.

        :param shape: ``url_padded`` (white space and new lines around it), ``url_http`` (``http://`` whatever the
            gateway's scheme is); ``expires_ms`` (milliseconds), ``expires_iso``, ``expires_past``,
            ``expires_absurd`` (10**400), ``expires_text``, ``expires_null``; ``created_huge`` (10**400),
            ``created_endless`` (5,000 digits), ``created_nan``, ``created_text``, ``created_missing``;
            ``model_hostile`` (NUL and a lone surrogate), ``nested`` (a field 100,000 lists deep), ``bom``,
            ``utf16``, ``trailing_text`` (a comment after the JSON).
        """
        _require_one_of("shape", shape, OddShape)
        return cls(kind="odd_answer", shape=shape)

    @classmethod
    def encoded(cls, encoding: Encoding, *, code: int = 200, size: int = 256 * 1024 * 1024) -> Self:
        """Render, bill, and answer in a content coding that nobody asked for.

        :param encoding: ``gzip``; ``gzip_unlabelled`` (without its header); ``bomb`` (``gzip, gzip``: a few KB that
            unpack to `size` bytes); ``unknown`` (the answer as it is, labelled ``x-acme``).
        :param code: from 300 up it is an error's body. 5xx is billed, others are not.
        """
        _require_one_of("encoding", encoding, Encoding)
        billed = code < 300 or (code >= 500 and code not in REFUSALS)
        return cls(kind="encoded", shape=encoding, code=code, size=size, billed=billed)

    @classmethod
    def hostile_text(cls, shape: HostileShape, *, code: int = 400) -> Self:
        """Answer with an error whose words do harm where they are used unseen. Not billed.

        :param shape: ``nul``, ``surrogate`` (half of an emoji), ``control`` (terminal escapes, bidi marks),
            ``dotted`` (100 KB of ``a.a.a.``), ``markup`` (100 KB of ``<script>``), ``not_utf8``, ``nested``
            (100,000 lists deep), ``status_line`` (64 KB of reason phrase) or ``header`` (64 KB of one header).
        """
        _require_one_of("shape", shape, HostileShape)
        return cls(kind="hostile_text", shape=shape, code=code, billed=False)

    @classmethod
    def leading_whitespace(cls) -> Self:
        """Answer 200 at once and send white space while it renders, then the JSON."""
        return cls(kind="leading_whitespace")

    @classmethod
    def early_expiry(cls, seconds: float) -> Self:
        """Answer as usual, with a link that stops working after `seconds`, whatever ``expires_at`` says."""
        return cls(kind="early_expiry", seconds=seconds)

    @classmethod
    def container(cls, form: Container) -> Self:
        """Answer as usual, with a clip that does not begin as an MP4 usually does.

        :param form: ``webm``; ``fragmented`` (an MP4 of fragments); an MP4 whose first box is ``styp``, ``moov``,
            ``free``, ``skip`` or ``wide``.
        """
        _require_one_of("form", form, Container)
        return cls(kind="container", shape=form)

    @classmethod
    def wrong_clip(cls, how: WrongClip) -> Self:
        """Answer as usual, with a clip that is not what was asked for.

        :param how: ``turned`` (9:16 for 16:9, and 16:9 for a square), ``short`` (2 s), ``small`` (480p; 240p for
            480p), ``mute`` (no sound), ``silent`` (sound, and nothing to hear), ``black``, ``frozen`` (the same
            picture all the time).
        """
        _require_one_of("how", how, WrongClip)
        return cls(kind="wrong_clip", shape=how)

    @property
    def refuses(self) -> bool:
        """Whether it strikes before anything is rendered."""
        return not self.billed

    def as_json(self) -> dict[str, Any]:
        """Its form on the control endpoints."""
        return {"on": "render", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class ClipFault:
    """One thing that goes wrong with one GET of a clip. Made by the class methods below.

    A HEAD takes no fault, and neither does a request that is refused anyway.
    """

    kind: _ClipKind
    code: int = 200
    bytes: int | None = None
    reset: bool = False
    bytes_per_second: float | None = None
    location: str | None = None
    shape: str = ""

    def __post_init__(self) -> None:
        _require_one_of("kind", self.kind, _ClipKind)

    @classmethod
    def break_after(cls, n: int, *, reset: bool = False) -> Self:
        """Send `n` bytes of the body and close the connection.

        :param reset: reset it instead; the client may then see fewer than `n` bytes.
        """
        return cls(kind="break_after", bytes=n, reset=reset)

    @classmethod
    def no_length(cls, n: int | None = None, *, framing: Framing = "close") -> Self:
        """Send the body without a ``Content-Length``, and only `n` bytes of it: nothing tells that more should come.

        :param n: all of it where left out.
        :param framing: what ends the body: ``close`` (the connection's end), ``http_1_0`` (the same, in HTTP/1.0)
            or ``chunked`` (chunks; where cut short, without the last one).
        """
        _require_one_of("framing", framing, Framing)
        return cls(kind="no_length", bytes=n, shape=framing)

    @classmethod
    def slow(cls, bytes_per_second: float) -> Self:
        """Send the body slowly."""
        return cls(kind="slow", bytes_per_second=bytes_per_second)

    @classmethod
    def hang(cls) -> Self:
        """Never answer."""
        return cls(kind="hang")

    @classmethod
    def status(cls, code: int) -> Self:
        """Answer with an error status and S3's XML; 404 and 410 say that the clip is gone."""
        return cls(kind="status", code=code)

    @classmethod
    def web_filter(cls, code: int = 403) -> Self:
        """Answer with a web filter's page, "Your session has expired", though the link is alive."""
        return cls(kind="web_filter", code=code)

    @classmethod
    def wrong_length(cls, by: int = 1) -> Self:
        """Announce `by` bytes more than there are and close after the last.

        :param by: where negative, announce and send that much less: nothing tells that the end is missing.
        """
        return cls(kind="wrong_length", bytes=by)

    @classmethod
    def changed(cls) -> Self:
        """From this request on the link serves other bytes of the same length, under another ETag."""
        return cls(kind="changed")

    @classmethod
    def no_ranges(cls) -> Self:
        """Ignore ``Range``: answer 200 with the whole clip."""
        return cls(kind="no_ranges")

    @classmethod
    def html(cls) -> Self:
        """Answer 200 with an HTML page."""
        return cls(kind="html")

    @classmethod
    def json(cls) -> Self:
        """Answer 200 with a JSON error."""
        return cls(kind="json")

    @classmethod
    def encoded(cls, encoding: Encoding) -> Self:
        """Send the clip in a content coding that nobody asked for.

        :param encoding: ``gzip``, ``gzip_unlabelled``, ``bomb`` (``gzip, gzip``: 256 MiB of zeros after the clip)
            or ``unknown`` (the clip as it is, labelled ``x-acme``).
        """
        _require_one_of("encoding", encoding, Encoding)
        return cls(kind="encoded", shape=encoding)

    @classmethod
    def redirect(cls, location: str | None = None, *, code: int = 302) -> Self:
        """Redirect to `location`, or to another link of the same clip."""
        return cls(kind="redirect", location=location, code=code)

    @classmethod
    def utf8_redirect(cls, code: int = 302) -> Self:
        """Redirect to another link of the same clip, with raw UTF-8 in ``Location``, as browsers follow it."""
        return cls(kind="utf8_redirect", code=code)

    def as_json(self) -> dict[str, Any]:
        """Its form on the control endpoints."""
        return {"on": "clip", **asdict(self)}


def fault_from_json(form: dict[str, Any]) -> Fault | ClipFault:
    """Read what ``as_json`` wrote.

    :raises ValueError: there is no such fault.
    """
    fields = {name: value for name, value in form.items() if name != "on"}
    try:
        return Fault(**fields) if form.get("on") == "render" else ClipFault(**fields)
    except TypeError as problem:
        raise ValueError(f"no fault of this form: {problem}") from None


def catalogue() -> dict[str, inspect.Signature]:
    """Every fault by its name on the command line, such as ``foreign`` and ``clip.slow``, with its parameters."""
    return {
        f"{prefix}{name}": inspect.signature(getattr(kind, name))
        for kind, prefix in ((Fault, ""), (ClipFault, "clip."))
        for name, member in vars(kind).items()
        if isinstance(member, classmethod)
    }


def fault_by_name(name: str, **arguments: Any) -> Fault | ClipFault:
    """Make a fault by its name in the catalogue.

    :raises ValueError: there is no such fault, or it does not take these arguments.
    """
    if name not in catalogue():
        raise ValueError(f"unknown fault {name!r}; see: codegateway-emulator faults")
    kind: type[Fault | ClipFault] = ClipFault if name.startswith("clip.") else Fault
    try:
        fault: Fault | ClipFault = getattr(kind, name.removeprefix("clip."))(**arguments)
    except TypeError as problem:
        raise ValueError(f"{name}: {problem}") from None
    return fault


def _require_one_of(name: str, value: object, literal: Any) -> None:
    values = get_args(literal)
    if value not in values:
        raise ValueError(f"{name} must be one of {', '.join(values)}, not {value!r}")
