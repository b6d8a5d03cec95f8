"""What can be made to go wrong, at the gateway (`Fault`) and at the clip's link (`ClipFault`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

NoUrlShape = Literal["empty", "missing", "null", "no_item_url", "blank", "error"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong with one POST. Made by the class methods below.

    A fault is taken by the next POST whose body arrived, whoever sent it.
    """

    kind: str
    code: int = 200
    retry_after: float | str | None = None
    body: dict[str, Any] | str | None = None
    as_html: bool = False
    billed: bool = True
    bytes_per_second: float | None = None
    shape: NoUrlShape = "empty"
    seconds: float = 0.0

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
        :param billed: render and bill first. Only 5xx can, and not 503, which says that nothing was started.
        """
        if billed and (code < 500 or code == 503):
            raise ValueError(f"status {code} is never billed; 500, 502 and 504 may be")
        return cls(kind="status", code=code, retry_after=retry_after, body=body, as_html=html, billed=billed)

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
    def truncated_body(cls) -> Self:
        """Announce the whole answer, send half of it, and close the connection."""
        return cls(kind="truncated_body")

    @classmethod
    def html(cls, code: int = 200) -> Self:
        """Render, bill, and answer with an HTML page under `code`."""
        return cls(kind="html", code=code)

    @classmethod
    def no_url(cls, shape: NoUrlShape = "empty") -> Self:
        """Render, bill, and answer 200 without a clip URL.

        :param shape: ``empty`` (``data`` is ``[]``), ``missing`` (no ``data``), ``null`` (``data`` is null),
            ``no_item_url`` (``data[0]`` has no ``url``), ``blank`` (``url`` is ``""``),
            ``error`` (an error envelope after leading white space, as from gateways that keep a connection
            alive that way).
        """
        return cls(kind="no_url", shape=shape)

    @classmethod
    def leading_whitespace(cls) -> Self:
        """Answer 200 at once and send white space while it renders, then the JSON."""
        return cls(kind="leading_whitespace")

    @classmethod
    def early_expiry(cls, seconds: float) -> Self:
        """Answer as usual, with a link that stops working after `seconds`, whatever ``expires_at`` says."""
        return cls(kind="early_expiry", seconds=seconds)

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

    kind: str
    code: int = 200
    bytes: int = 0
    reset: bool = False
    bytes_per_second: float | None = None
    location: str | None = None

    @classmethod
    def break_after(cls, n: int, *, reset: bool = False) -> Self:
        """Send `n` bytes of the body and close the connection.

        :param reset: reset it instead; the client may then see fewer than `n` bytes.
        """
        return cls(kind="break_after", bytes=n, reset=reset)

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
        """Answer with an error status and S3's XML."""
        return cls(kind="status", code=code)

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
    def redirect(cls, location: str | None = None, *, code: int = 302) -> Self:
        """Redirect to `location`, or to another link of the same clip."""
        return cls(kind="redirect", location=location, code=code)

    def as_json(self) -> dict[str, Any]:
        """Its form on the control endpoints."""
        return {"on": "clip", **asdict(self)}


def fault_from_json(form: dict[str, Any]) -> Fault | ClipFault:
    """Read what ``as_json`` wrote."""
    fields = {name: value for name, value in form.items() if name != "on"}
    return Fault(**fields) if form["on"] == "render" else ClipFault(**fields)
