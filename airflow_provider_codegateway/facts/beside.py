"""What is put beside a clip once it is stored: its first and last picture, and its papers.

The clip is delivered by then. Whatever fails here is a warning, and the task succeeds without it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from airflow_provider_codegateway import __version__
from airflow_provider_codegateway.clip import BESIDE, Clip, S3Location, ledger_around, location_beside
from airflow_provider_codegateway.exceptions import InvalidRequest
from airflow_provider_codegateway.limits import LIMITS, Limits
from airflow_provider_codegateway.s3 import access_args

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).with_name("frames.py")
_IN_THE_PAPERS = (
    *("uri", "bytes", "sha256", "model", "fingerprint", "facts", "mismatches", "cost", "renders_bought"),
    *("render_seconds", "poster", "last_frame"),
)
_PICTURES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
_OF_THE_CLIP_ALONE = ("Content", "If", "Checksum", "Expires", "Website")
"""How the arguments for an upload begin that are about its bytes, and not about every object of the bucket."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What is wanted beside a clip, and where.

    :param looks_inside: whether to look for black and frozen pictures, and for silence.
    """

    poster: S3Location | None
    last_frame: S3Location | None
    sidecar: S3Location | None
    looks_inside: bool

    @classmethod
    def of(
        cls,
        clip: S3Location,
        *,
        poster_key: str | None,
        last_frame_key: str | None,
        sidecar_key: str | None,
        looks_inside: bool,
        ledger_prefix: str,
    ) -> Self:
        """Where everything goes, checked for free.

        :raises InvalidRequest: a key that is none, that something else has, or that says no format; or PyAV is missing.
        """
        keys = {"poster_key": poster_key, "last_frame_key": last_frame_key, "sidecar_key": sidecar_key}
        at: dict[str, S3Location | None] = {"poster": None, "last_frame": None, "sidecar": None}
        for name, key in keys.items():
            if key is None or key == "":
                continue
            place = location_beside(name, key, clip)
            if place in (clip, *at.values()):
                raise InvalidRequest(f"{name}={key!r} is the key of something else. Choose one of its own.")
            if (prefix := ledger_around(place, ledger_prefix, clip.bucket)) is not None:
                raise InvalidRequest(
                    f"{name}={key!r} is in the ledger ({prefix!r}), whose objects it could overwrite. Choose another "
                    "key."
                )
            if name != "sidecar_key" and Path(place.key).suffix.lower() not in _PICTURES:
                raise InvalidRequest(f"{name}={key!r} does not say which format. End it in .jpg or .png.")
            at[name.removesuffix("_key")] = place
        beside = cls(**at, looks_inside=looks_inside)
        if beside.needs_pictures and importlib.util.find_spec("av") is None:
            raise InvalidRequest(
                "poster_key, last_frame_key and check_content need PyAV. Install airflow-provider-codegateway[media] "
                "on the workers."
            )
        return beside

    @property
    def needs_pictures(self) -> bool:
        """Whether the clip has to be decoded."""
        return bool(self.poster or self.last_frame or self.looks_inside)


def put_beside(
    s3: S3Client,
    clip: Clip,
    beside: Beside,
    *,
    request: Mapping[str, Any] | None,
    asked_by: Mapping[str, Any],
    upload_args: Mapping[str, Any],
    limits: Limits = LIMITS,
) -> Clip:
    """Make what is wanted, and store it. Older objects at its keys are replaced.

    :param request: the body that was sent, media by digest; None if it is not known here.
    :param asked_by: the task instance.
    :param upload_args: as for the clip.
    :return: the clip, with what it has now.
    """
    looked: dict[str, Any] = {"found": [], "c2pa": None}
    args = {name: value for name, value in upload_args.items() if not name.startswith(_OF_THE_CLIP_ALONE)}
    with TemporaryDirectory(prefix="codegateway-") as folder, _only_warned(clip, "be looked at"):
        bears_papers = beside.sidecar is not None and importlib.util.find_spec("c2pa") is not None
        if beside.needs_pictures or bears_papers:
            path = Path(folder, "clip")
            media_type, digest = _fetch(s3, clip, path, upload_args, limits)
            clip = replace(clip, sha256=clip.sha256 or digest)
            wanted = {"poster": beside.poster, "last_frame": beside.last_frame}
            pictures = {name: at for name, at in wanted.items() if at is not None}
            files = {name: f"{folder}/{name}{Path(at.key).suffix.lower()}" for name, at in pictures.items()}
            job = {
                "clip": str(path),
                "media_type": media_type,
                "content": beside.looks_inside,
                "c2pa": bears_papers,
            }
            looked = _look({**job, **files}, limits)
            is_loud = clip.facts is not None and clip.facts.get("audio")
            found = [each for each in looked["found"] if is_loud or "sound" not in each]
            clip = replace(clip, mismatches=(*clip.mismatches, *found))
            for name, at in pictures.items():
                file = Path(files[name])
                _put(s3, at, file.read_bytes(), _PICTURES[file.suffix], clip, args)
                stored: dict[str, Any] = {name: at.uri}
                clip = replace(clip, **stored)
    if beside.sidecar is not None:
        with _only_warned(clip, "have its papers written"):
            papers = _papers(clip, request=request, asked_by=asked_by, bears_c2pa=looked["c2pa"])
            content = json.dumps(papers, indent=2, ensure_ascii=False).encode()
            _put(s3, beside.sidecar, content, "application/json", clip, args)
            log.info("What the clip is and where it comes from is at %s.", beside.sidecar.uri)
    return clip


@contextmanager
def _only_warned(clip: Clip, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of botocore, ffmpeg, the disk: the clip is worth more
        why = error.args[0] if isinstance(error, _Failed) else type(error).__name__
        log.warning("The clip is stored at %s, and could not %s: %s", clip.uri, what, why)


class _Failed(Exception):
    """The message says why."""


def _fetch(
    s3: S3Client, clip: Clip, path: Path, upload_args: Mapping[str, Any], limits: Limits
) -> tuple[str, str]:
    """Copy the stored clip into a file: its type, and its SHA-256."""
    if clip.bytes > limits.max_looked_at:
        raise _Failed(f"it has more than {limits.max_looked_at:,} bytes.")
    answer = s3.get_object(Bucket=clip.bucket, Key=clip.key, **access_args(s3, "GetObject", upload_args))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in answer["Body"].iter_chunks(limits.block_size):
            file.write(chunk)
            digest.update(chunk)
    return answer["ContentType"], digest.hexdigest()


def _look(job: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    # -P: the script's folder is no place to import from.
    command = [sys.executable, "-P", str(_SCRIPT)]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=limits.look_timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _Failed(f"decoding it took more than {limits.look_timeout:.0f} s.") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise _Failed(f"it could not be decoded ({last[0][:200]}).")
    looked: dict[str, Any] = json.loads(done.stdout)
    return looked


def _papers(
    clip: Clip, *, request: Mapping[str, Any] | None, asked_by: Mapping[str, Any], bears_c2pa: bool | None
) -> dict[str, Any]:
    """What is known of a clip.

    :param request: the body that was sent, media by digest.
    :param asked_by: the task instance that asked for the clip.
    :param bears_c2pa: whether the file bears a C2PA manifest; None if that cannot be told.
    """
    values = clip.as_dict()
    return {
        **{name: values[name] for name in _IN_THE_PAPERS},
        "request": None if request is None else dict(request),
        "created": None if clip.created is None else _time(clip.created),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "c2pa": bears_c2pa,
        "asked_by": dict(asked_by),
        "made_with": f"airflow-provider-codegateway {__version__}",
    }


def _time(seconds: float) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _put(
    s3: S3Client, at: S3Location, content: bytes, media_type: str, clip: Clip, args: Mapping[str, Any]
) -> None:
    s3.put_object(
        Bucket=at.bucket,
        Key=at.key,
        Body=content,
        ContentType=media_type,
        Metadata={BESIDE: clip.fingerprint},
        **args,
    )
