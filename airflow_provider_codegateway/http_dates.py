"""Dates of HTTP headers, and the one rule for ``Retry-After``."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: a day. What asks for more is mistaken."""

_LONGEST = 64
"""Characters of a date or a number in a header."""


def http_date(value: str | None) -> float | None:
    """Unix seconds; None if it is not a date."""
    if not value or len(value) > _LONGEST:
        return None
    try:
        at = parsedate_to_datetime(value)
        return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def retry_after(value: str | None) -> float | None:
    """Seconds to wait: a number or a date (RFC 9110, section 10.2.3); None if it is neither.

    :return: from 0 to a day.
    """
    if not value or len(value) > _LONGEST:
        return None
    if re.fullmatch(r"\s*[+-]?[0-9]+(\.[0-9]*)?\s*", value, re.ASCII):
        seconds: float | None = float(value)
    else:
        at = http_date(value)
        seconds = None if at is None else at - time.time()
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
