"""``python -m airflow_provider_codegateway.ledger``: what is in flight, what was paid and not delivered.

Credentials and endpoint are those of an Airflow connection, or boto3's own: the environment, a profile, a role.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_codegateway.clip import DEFAULT_LEDGER_PREFIX, S3Location, split_uri
from airflow_provider_codegateway.commands import run_command
from airflow_provider_codegateway.exceptions import CodeGatewayError
from airflow_provider_codegateway.foreign import safe_text
from airflow_provider_codegateway.inputs import hide
from airflow_provider_codegateway.ledger.entry import Entry, describe_attempts, is_ledger_name, situation
from airflow_provider_codegateway.ledger.store import Ledger
from airflow_provider_codegateway.redaction import redact_urls

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

LONGEST_ANSWER = 16_384
"""Characters of an answer that are shown."""


Connect = Callable[[str], "S3Client"]
"""A client for an Airflow connection."""


def main(arguments: Sequence[str] | None, connect: Connect) -> int:
    """Run the command; the exit status."""
    return run(parser().parse_args(arguments), connect)


def run(options: argparse.Namespace, connect: Connect) -> int:
    """Do what was parsed; the exit status."""
    location = split_uri(options.location)
    if location is None or not location.bucket:
        print(f"{options.location!r} is not s3://bucket or s3://bucket/prefix.", file=sys.stderr)
        return 2
    return run_command(lambda: options.run(_client(options, connect), location, options))


def list_entries(s3: S3Client, location: S3Location, options: argparse.Namespace) -> int:
    """Every entry below a bucket or prefix, one line each."""
    prefix = S3Location(location.bucket, location.key or DEFAULT_LEDGER_PREFIX)
    rows: list[tuple[S3Location, Entry]] = []
    unreadable = 0
    for at in _entries(s3, prefix):
        try:
            rows.append((at, _ledger(s3, at).read()))
        except CodeGatewayError as error:  # the others are still of interest
            unreadable += 1
            print(f"{_shown_uri(at)} cannot be read: {safe_text(error.args[0])}", file=sys.stderr)
    if options.json:
        print(json.dumps([_as_dict(at, entry) for at, entry in rows], indent=2))
        return 1 if unreadable else 0
    for at, entry in rows:
        model = safe_text(entry.model or "?", 100)
        print(f"{situation(entry):<24} {len(entry.attempts)} begun  {model:<26} {_shown_uri(at)}")
    below = _shown_uri(prefix)
    if rows or unreadable:
        print(f"Entries below {below}: {len(rows)}")
    else:
        print(f"Nothing below {below}: all is settled.")
    return 1 if unreadable else 0


def show_entry(s3: S3Client, location: S3Location, options: argparse.Namespace) -> int:
    """One entry whole: the request, without media and links, and each render with its outcome."""
    at = _entry(location)
    ledger = _ledger(s3, at)
    entry = ledger.read()
    if not entry:
        print(f"There is no ledger entry at {_shown_uri(at)}.", file=sys.stderr)
        return 1
    if options.json:
        first, *fallbacks = [_shown(body) for body in ledger.requests()] or [None]
        chain = {"fallbacks": fallbacks} if fallbacks else {}
        print(json.dumps(_as_dict(at, entry) | {"request": first} | chain, indent=2))
        return 0
    print(f"{_shown_uri(at)}: {situation(entry)}")
    print(f"fingerprint: {safe_text(entry.fingerprint)}")
    for number, body in enumerate(ledger.requests()):
        if number:
            print(f"fallback {number}:")
        for name, value in _shown(body).items():
            print(f"{'  ' if number else ''}{safe_text(name)}: {safe_text(value)}")
    print(safe_text(describe_attempts(entry), 20_000))
    for attempt in entry.attempts:
        if attempt.rendered:
            print(f"Answer to render {attempt.number}: {_answer_in_words(ledger, attempt.number, options)}")
    return 0


def _answer_in_words(ledger: Ledger, number: int, options: argparse.Namespace) -> str:
    try:
        answer = ledger.answer(number)
    except CodeGatewayError as error:
        return str(error.args[0])
    if answer is None:
        return "gone meanwhile"
    received = "" if answer.received_at is None else f", received {_utc(answer.received_at)}"
    text = safe_text(answer.text.strip(), LONGEST_ANSWER)
    if options.answer:
        return f"{answer.status}{received}: {text}"
    return f"{answer.status}{received}: {redact_urls(text)} (--answer shows the link whole: keep it as a password.)"


def _utc(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def forget_entry(s3: S3Client, location: S3Location, options: argparse.Namespace) -> int:
    """Delete one entry, so that its clip may be bought anew."""
    at = _entry(location)
    ledger = _ledger(s3, at)
    entry = ledger.read()
    if not entry:
        print(f"There is no ledger entry at {_shown_uri(at)}.", file=sys.stderr)
        return 1
    print(safe_text(f"{at.uri}: {situation(entry)}. {describe_attempts(entry)}", 20_000))
    if not options.yes:
        print("The next run may buy this clip again. Repeat with --yes to delete the entry.", file=sys.stderr)
        return 1
    if situation(entry) == "rendering" and not options.force:
        print(
            "A render of it is under way, and would be bought a second time. Wait for it, or repeat with --yes "
            "--force.",
            file=sys.stderr,
        )
        return 1
    names = ledger.forget()
    print(safe_text(f"Deleted {', '.join(names)}."))
    return 0


def _entries(s3: S3Client, prefix: S3Location) -> Iterator[S3Location]:
    last = None
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=prefix.key):
        for item in page.get("Contents", []):
            entry, _, name = item["Key"].rpartition("/")
            if entry != last and is_ledger_name(name):
                last = entry
                yield S3Location(prefix.bucket, f"{entry}/")


def _shown_uri(at: S3Location) -> str:
    return safe_text(at.uri)


def _entry(location: S3Location) -> S3Location:
    return S3Location(location.bucket, location.key.rstrip("/") + "/")


def _ledger(s3: S3Client, at: S3Location) -> Ledger:
    return Ledger(s3, at)


def _client(options: argparse.Namespace, connect: Connect) -> S3Client:
    if options.profile is None and options.endpoint_url is None:
        return connect(options.aws_conn_id)
    import boto3

    client: S3Client = boto3.Session(profile_name=options.profile).client(
        "s3", endpoint_url=options.endpoint_url
    )
    return client


def _as_dict(at: S3Location, entry: Entry) -> dict[str, Any]:
    return {
        "location": at.uri,
        "situation": situation(entry),
        "model": entry.model,
        "fingerprint": entry.fingerprint,
        "renders": [
            {
                "number": attempt.number,
                "started": attempt.started and attempt.started.isoformat(),
                "rendered": attempt.rendered and attempt.rendered.isoformat(),
                "abandoned": attempt.abandoned and attempt.abandoned.isoformat(),
                "outcome": attempt.outcome,
                **(
                    {"model": turn.model, "passed_over": [*turn.passed_over]}
                    if (turn := attempt.turn)
                    else {}
                ),
            }
            for attempt in entry.attempts
        ],
    }


def _shown(body: Any) -> Any:
    """The request without what must not be shown: image bytes, and the query of a URL."""
    return json.loads(json.dumps(hide(body), default=str))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_codegateway.ledger",
        description="What was bought for clips that are not in S3 yet.",
    )
    parser.add_argument(
        "--aws-conn-id", default="aws_default", help="Airflow connection of the ledger (%(default)s)"
    )
    parser.add_argument("--endpoint-url", help="of an S3 server, with boto3's own credentials")
    parser.add_argument("--profile", help="of the AWS configuration, in place of Airflow's connection")
    commands = parser.add_subparsers(required=True)
    for name, does, location, words in (
        ("list", list_entries, "s3://bucket or s3://bucket/ledger-prefix", "list every entry"),
        ("show", show_entry, "s3://bucket/ledger-prefix/clip-key", "show one entry"),
        ("forget", forget_entry, "s3://bucket/ledger-prefix/clip-key", "delete one entry"),
    ):
        command = commands.add_parser(name, help=words, description=does.__doc__)
        command.add_argument("location", help=location)
        if does is forget_entry:
            command.add_argument("--yes", action="store_true", help="do not only say what would be deleted")
            command.add_argument("--force", action="store_true", help="even if a render is under way")
        else:
            command.add_argument("--json", action="store_true", help="for machines")
        if does is show_entry:
            command.add_argument("--answer", action="store_true", help="show the gateway's answers whole")
        command.set_defaults(run=does)
    return parser
