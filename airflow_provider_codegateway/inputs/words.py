"""What may be shown of a reference, and the wrapper that shows no more than that."""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.inputs.formats import media_type
from airflow_provider_codegateway.inputs.inline import URL_SAFE, decode_inline

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]{1,64}\]|[^\s:@\[\]]{0,253})(:[0-9]{0,5})?")
# A name with an extension, which no base64 has, or one too short to tell anything.
_FILE_NAME = re.compile(r"[\w./~ -]{1,11}|[\w./~ -]{1,100}\.\w{1,5}")
_JINJA = re.compile(r"\{[{%#]")
# The look-behind lets a match begin only where a run does, which keeps the search linear.
_BASE64_RUN = re.compile(r"(?<![A-Za-z0-9+/_\r\n-])[A-Za-z0-9+/_\r\n-]{64}")


def describe(reference: str) -> str:
    """What may be shown of any string given as a reference, well-formed or not.

    A URL without user, query and fragment; ``s3://`` and ``file://`` as they are; ``<image/png, 12,345 bytes,
    sha256 ab12cd34…>`` for inline data; a short file name as it is; of anything else only its length.
    """
    text = reference.strip()
    if url := SCHEME.match(text):
        return printable(_describe_url(url[1].lower(), text, url.end()))
    # A long run without a break may be the start of somebody's bytes, whatever ending it has.
    stem = text.rsplit(".", 1)[0]
    is_plain = re.fullmatch(r"[a-z/. ~_-]*", stem) or not re.search(r"[\w+/=-]{12}", stem)
    if is_plain and _FILE_NAME.fullmatch(text):
        return printable(text)
    try:
        data = decode_inline(text)
    except ValueError:
        return f"<text, {len(reference):,} characters>"
    digest = hashlib.sha256(data).hexdigest()[:8]
    return f"<{media_type(data) or 'no known media'}, {len(data):,} bytes, sha256 {digest}…>"


class HiddenMedia:
    """A string that shows as :func:`describe` has it, wherever it is printed, rendered or serialized.

    Airflow stores template fields in its database and shows them in its UI. 3.x asks a value for
    ``serialize()``, 2.x takes the ``str`` of what JSON cannot encode; in a container that is the ``repr``.
    This class is deliberately no ``str``, which both would store whole, and no dataclass, whose fields
    serializers walk into.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself."""
        return self._value

    def serialize(self) -> str:
        """What Airflow 3 stores and shows of it."""
        return describe(self._value)

    def __str__(self) -> str:
        return describe(self._value)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, HiddenMedia) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)


def hide(value: Any, *, keep_templates: bool = False, copies: dict[int, int] | None = None) -> Any:
    """``value`` with every string that must not be shown wrapped, in dicts, lists, tuples and sets at any depth.

    Those are inline media, long runs of base64, and URLs with a query or a user.

    :param keep_templates: leave strings with Jinja in them alone, so that Airflow still renders them.
        For use before rendering; hide again afterwards.
    :param copies: takes the ``id`` of each container that is made, with that of the one it stands for.
    """
    if isinstance(value, str):
        is_kept = keep_templates and _JINJA.search(value)
        return HiddenMedia(value) if not is_kept and _must_hide(value) else value
    hidden = _map(value, lambda item: hide(item, keep_templates=keep_templates, copies=copies))
    if copies is not None and hidden is not value:
        copies[id(hidden)] = id(value)
    return hidden


def reveal(value: Any) -> Any:
    """``value`` as it was before :func:`hide`."""
    return value.reveal() if isinstance(value, HiddenMedia) else _map(value, reveal)


def show(value: Any) -> Any:
    """``value`` in plain types, with :func:`describe`'s words for what :func:`hide` wrapped."""
    return str(value) if isinstance(value, HiddenMedia) else _map(value, show)


def _describe_url(scheme: str, text: str, start: int) -> str:
    if scheme in ("s3", "file"):
        return _shorten(text, 1100)  # An S3 key has 1,024 bytes at most.
    if scheme not in ("https", "http"):
        return f"{_shorten(scheme, 10)}://…"
    authority, rest = _split_authority(text[start:])
    host = authority.rpartition("@")[2]
    if not _HOST_AND_PORT.fullmatch(host):
        # A password with a slash in it ends the authority early.
        return f"{scheme}://… (malformed)"
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}://{host}{_shorten(path, 200)}"


def _split_authority(text: str) -> tuple[str, str]:
    authority = re.split(r"[/?#\\]", text, maxsplit=1)[0]
    return authority, text[len(authority) :]


def _must_hide(text: str) -> bool:
    text = text.lstrip()
    if url := SCHEME.match(text):
        if url[1].lower() in ("s3", "file"):
            return False
        return "?" in text or "@" in _split_authority(text[url.end() :])[0]
    if re.match(r"data:[^\s,]*,", text, re.IGNORECASE) or _BASE64_RUN.search(text):
        return True
    # Small or oddly wrapped media: enough of it to know what it is.
    head = "".join(text[:400].split()).translate(URL_SAFE)
    try:
        return media_type(binascii.a2b_base64(head[: len(head) // 4 * 4])) is not None
    except ValueError:
        return False


def _map(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dict, list, tuple or set with its items changed; anything else as it is."""
    if isinstance(value, dict):
        return {key: change(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(change(item) for item in value)
    return value


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def printable(text: str) -> str:
    """``text`` with line breaks and the like replaced, so that it cannot forge a log line."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    )
