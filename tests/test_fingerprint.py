"""What makes two requests the same: the media's content, and never the signature of a link."""

from __future__ import annotations

import pytest

from airflow_provider_codegateway.models import build_request

HOST = "https://media.example.com/first-frame.png"


def fingerprint(image: str) -> str:
    return build_request("bytedance/seedance-2.0", prompt="p", image=image).fingerprint()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261126T100000Z&X-Amz-Expires=900&X-Amz-Signature=aa",
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20261126T101500Z&X-Amz-Expires=900&X-Amz-Signature=bb",
        ),
        (
            "AWSAccessKeyId=AKIA1&Signature=a%2Bb%3D&Expires=1795687705",
            "AWSAccessKeyId=AKIA2&Signature=c%2Fd%3D&Expires=1795688605",
        ),
        ("X-Goog-Date=1&X-Goog-Signature=a", "X-Goog-Date=2&X-Goog-Signature=b"),
        ("Policy=p&Signature=s&Key-Pair-Id=K1", "Policy=q&Signature=t&Key-Pair-Id=K1"),
        ("sv=2024-11-04&se=2026-11-26&sr=b&sp=r&sig=a", "sv=2024-11-04&se=2026-11-27&sr=b&sp=r&sig=b"),
    ],
    ids=["AWS 4", "AWS 2", "Google 4", "CloudFront", "Azure"],
)
def test_a_link_that_is_signed_anew_is_the_same_input(first: str, second: str) -> None:
    """Feeds sign their links at each read: a retry must find the clip that it has paid for."""
    assert fingerprint(f"{HOST}?{first}") == fingerprint(f"{HOST}?{second}") == fingerprint(HOST)
    assert fingerprint(f"{HOST}?versionId=1&{first}") == fingerprint(f"{HOST}?versionId=1&{second}")
    assert fingerprint(f"{HOST}?versionId=1&{first}") != fingerprint(f"{HOST}?versionId=2&{first}")


@pytest.mark.parametrize(
    ("first", "second"), [("id=1", "id=2"), ("expires=1", "expires=2"), ("se=1", "se=2"), ("", "size=large")]
)
def test_a_link_that_is_not_signed_counts_as_it_is_written(first: str, second: str) -> None:
    """A parameter may well say which image it is."""
    assert fingerprint(f"{HOST}?{first}") != fingerprint(f"{HOST}?{second}")
