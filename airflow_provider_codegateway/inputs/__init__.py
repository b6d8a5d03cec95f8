"""Image and video inputs: what an author names, and what the model takes.

A reference is an ``https://`` URL, an ``s3://`` key, a ``file://`` path, base64, or a base64 data URI.
:func:`check_reference` refuses for free what can be refused, :func:`resolve` makes the value that goes to the
gateway, :func:`describe` and :func:`hide` keep bytes and presigned queries out of everything that is shown.
"""

from __future__ import annotations

from airflow_provider_codegateway.inputs.formats import MAX_BYTES, Kind
from airflow_provider_codegateway.inputs.resolve import check_reference, content_digest, resolve
from airflow_provider_codegateway.inputs.words import HiddenMedia, describe, hide, reveal, show

__all__ = [
    "MAX_BYTES",
    "HiddenMedia",
    "Kind",
    "check_reference",
    "content_digest",
    "describe",
    "hide",
    "resolve",
    "reveal",
    "show",
]
