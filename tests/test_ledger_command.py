"""The ledger's command: what it shows, what it refuses, what it deletes."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import pytest

from airflow_provider_codegateway.clip import S3Location
from airflow_provider_codegateway.gateway import Answer
from airflow_provider_codegateway.ledger import Ledger, entry_location
from airflow_provider_codegateway.ledger.command import main
from airflow_provider_codegateway.ledger.entry import forget_command

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

BODY = {"model": "google/veo-3.1-fast", "prompt": "p\x1b[31mred"}
ANSWER = Answer(
    body=b'{"created": 1, "data": [{"url": "https://cdn.example.com/x.mp4?sig=s"}]}', render_seconds=120.5
)


def run(s3: S3Client, *arguments: str) -> int:
    """The command, with the client of whichever connection is named."""
    return main(arguments, lambda conn_id: s3)


def entry_of(s3: S3Client, bucket: str, key: str, prefix: str = "_codegateway/") -> Ledger:
    ledger = Ledger(s3, entry_location(S3Location(bucket, key), prefix), fingerprint="f", requester="r")
    ledger.open(BODY)
    return ledger


def keys(s3: S3Client, bucket: str) -> set[str]:
    found = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {item["Key"] for page in found for item in page.get("Contents", [])}


def test_one_unreadable_entry_does_not_hide_the_others(
    s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named, and the exit status says that something was wrong."""
    entry_of(s3, bucket, "a.mp4")
    entry_of(s3, bucket, "c.mp4")
    s3.put_object(Bucket=bucket, Key="_codegateway/b.mp4/request.json", Body=b"not ours")
    assert run(s3, "list", f"s3://{bucket}") == 1
    said = capsys.readouterr()
    assert "a.mp4" in said.out
    assert "c.mp4" in said.out
    assert "b.mp4/ cannot be read" in said.err


def test_terminal_escapes_are_shown_as_text(
    s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt, or a key, is what somebody else wrote."""
    entry_of(s3, bucket, "a\u202e.mp4")
    assert run(s3, "show", f"s3://{bucket}/_codegateway/a\u202e.mp4") == 0
    assert run(s3, "list", f"s3://{bucket}") == 0
    said = capsys.readouterr().out
    assert "p\\x1b[31mred" in said
    assert "a\\u202e.mp4" in said
    assert "\x1b" not in said


def test_forget_takes_only_what_is_the_ledgers(s3: S3Client, bucket: str) -> None:
    """With an empty prefix, the clips of a folder lie beside the entry of a clip of that name."""
    entry_of(s3, bucket, "spring", prefix="")
    others = {f"spring/clip-{number}.mp4" for number in range(3)}
    for key in others:
        s3.put_object(Bucket=bucket, Key=key, Body=b"a clip")
    assert run(s3, "forget", "--yes", f"s3://{bucket}/spring") == 0
    assert keys(s3, bucket) == others


def test_an_entry_among_more_objects_than_one_list_has_is_read_whole(s3: S3Client, bucket: str) -> None:
    """Lists are cut at 1,000."""
    ledger = entry_of(s3, bucket, "spring", prefix="")
    for number in range(1001):
        s3.put_object(Bucket=bucket, Key=f"spring/clip-{number:04}.mp4", Body=b"")
    assert ledger.claim(1, claim_seconds=60)
    ledger.keep(1, ANSWER)
    entry = ledger.read()
    assert entry.open
    assert [attempt.number for attempt in entry.attempts] == [1]


def test_an_entry_that_is_rendering_is_forgotten_only_if_told_twice(
    s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run would buy the same clip at the same time."""
    ledger = entry_of(s3, bucket, "a.mp4")
    assert ledger.claim(1, claim_seconds=600)
    before = keys(s3, bucket)
    assert run(s3, "forget", "--yes", ledger.location.uri) == 1
    assert "--yes --force" in capsys.readouterr().err
    assert keys(s3, bucket) == before
    assert run(s3, "forget", "--yes", "--force", ledger.location.uri) == 0
    assert keys(s3, bucket) == set()


@pytest.mark.parametrize("key", ["a b.mp4", "it's.mp4", "$(id).mp4", "a;b&c.mp4", "ünï.mp4"])
def test_the_command_of_a_message_can_be_pasted(key: str, s3: S3Client, bucket: str) -> None:
    """Whatever the key holds, a shell hands it over as it is."""
    ledger = entry_of(s3, bucket, key)
    words = shlex.split(forget_command(ledger.location))
    assert words[:3] == ["python", "-m", "airflow_provider_codegateway.ledger"]
    assert run(s3, *words[3:], "--yes") == 0
    assert keys(s3, bucket) == set()


def test_the_connection_may_be_named(s3: S3Client, bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``aws_default`` otherwise, as for the operator."""
    asked: list[str] = []

    def connect(conn_id: str) -> S3Client:
        asked.append(conn_id)
        return s3

    assert main(["list", "--json", f"s3://{bucket}"], connect) == 0
    assert main(["--aws-conn-id", "aws_ledger", "list", f"s3://{bucket}"], connect) == 0
    assert asked == ["aws_default", "aws_ledger"]
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == []
