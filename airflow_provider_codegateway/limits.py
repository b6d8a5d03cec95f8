"""Every time-out, margin and size, and how they depend on each other.

``LIMITS`` is what the product uses. Tests hand a ``Limits`` of their own to whatever they test.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds and bytes, unless a name says otherwise."""

    # The gateway.
    progress_interval: float = 30.0
    """Between two log lines while a render is awaited."""
    longest_backoff: float = 60.0
    """A longer ``Retry-After`` is left to Airflow's retries, which hold no worker slot."""
    max_answer_bytes: int = MIB
    """An answer is a few hundred bytes of JSON; anything longer is not an answer."""
    max_error_bytes: int = 64 * 1024
    """The rest of an error is not read."""
    answer_silence: float = 1.0
    """After which an answer that is whole is taken as it is, though its connection is held open."""
    refusal_silence: float = 10.0
    """After which a refusal is judged by what came of it."""
    late_refusal: float = 20.0
    """After the request. What comes later may stand for a render that was begun: a filter that reads answers sends its
    own page instead of them, and a 503 may be of a model that failed. No model renders that quickly."""

    # The ledger.
    poll_interval: float = 2.0
    """Between two looks at an entry that another run is working on."""
    proof_seconds: float = 600.0
    """For how long a permission that was proven is taken for granted."""
    list_patience: float = 10.0
    """For how long a list that shows what is gone is asked for again."""
    look_patience: float = 10.0
    """From asking for a claim to the POST. A claim that took longer is given back: it would end too early."""
    claims_too_old: int = 3
    """In a row, after which S3 is too slow to buy anything."""
    receipt_patience: float = 60.0
    """For how long a receipt is written again while S3 fails."""
    receipt_connect: float = 3.0
    """To connect for a receipt's write."""
    receipt_answer: float = 8.0
    """For one attempt to write a receipt. The next has a new connection: a firewall may have forgotten this one."""
    receipt_write: float = 20.0
    """What the last attempt to write a receipt may take."""
    claim_margin: float = 90.0
    """How long a claim outlasts the gateway's deadline: the look before the POST, and the receipt after it."""
    settle_grace: float = 15.0
    """For how long a fresh receipt is left to the run that bought it."""
    beat_interval: float = 5.0
    """Between two signs of life of a transfer. One that is quicker than this gives none."""
    beat_patience: float = 20.0
    """Without a sign of life, after which a transfer counts as dead."""

    # The journal.
    journal_patience: float = 5.0
    """For how long one object is written again while S3 fails."""
    checkpoint_every: int = 8
    """Objects between two checkpoints: how many a new process reads one by one, at most twice this."""

    # The transfer.
    block_size: int = MIB
    """Bytes sent to S3 at a time."""
    part_size: int = 8 * MIB
    """Bytes in each part but the last. A clip that fits in one part is stored by one ``PutObject``."""
    parts_in_flight: int = 3
    max_parts: int = 10_000
    """S3's limit: the longest clip has 78 GiB."""
    connect_timeout: float = 10.0
    """TLS handshake included."""
    read_timeout: float = 60.0
    """Without a byte."""
    transfer_timeout: float = 3600.0
    """One clip's download, all resumes included."""
    slowest: int = 16 * 1024
    """Bytes a second that a clip's host must send, over ``speed_window``. 60 MiB take an hour then."""
    speed_window: float = 20.0
    """A host that is slower holds a thread for this long, and the next clip has its turn."""
    max_index_bytes: int = 4 * MIB
    """Of an MP4, kept for the clip's facts while it passes by. A clip of a minute has 60 KiB."""
    link_patience: float = 3600.0
    """After the render. A link without a known end that is refused later than this has run out."""
    max_failures: int = 5
    """Connections in a row that may fail without a new byte."""
    max_absences: int = 7
    """Times in a row, in about a minute, that a host may say that there is no such clip: it may not have a fresh one
    yet."""
    max_redirects: int = 5
    first_backoff: float = 0.5
    """Before the first resume. It doubles with each failure in a row; jitter takes up to half."""
    max_backoff: float = 30.0
    """A longer ``Retry-After`` is cut to this."""

    # What came, held against what was asked for.
    duration_tolerance: float = 0.5
    """Seconds. Models count in frames: 5 s are 5.04, and 6 s are 5.88."""
    aspect_tolerance: float = 0.03
    """Part of the ratio. Encoders like sizes that 16 divides: 16:9 is 1248x704, and 21:9 960x416."""
    resolution_tolerance: float = 0.05
    """Part of the lines: 704 are 720, and 720 are not 768."""

    # Pictures of a stored clip.
    max_looked_at: int = 1024 * MIB
    """A longer clip is not copied to the worker's disk, and has no pictures."""
    look_timeout: float = 120.0
    """A clip of 12 s in 1080p takes about a second."""

    # The batch.
    longest_pause: float = 900.0
    """A longer ``Retry-After`` ends the batch; what it has not begun is left to Airflow's retries."""
    transfer_attempts: int = 3
    """Of a clip that is paid for."""
    errors_shown: int = 5
    """In the message of a batch that failed. The manifest has all of them."""
    problems_shown: int = 100
    """Rows that are wrong, in the message that refuses a batch. The task's log has all of them."""
    manifest_patience: float = 60.0
    """For how long the manifest is written again while S3 fails."""

    # The trigger.
    earliest_event: float = 10.0
    """A trigger runs at least this long.

    A task that resumes before the scheduler has heard of its deferral is failed by Airflow, with a message that
    hides our error (apache/airflow#67287, #71580, #72716). A refused key is known in a fraction of a second. With 5 s,
    a scheduler on two busy cores still failed some.
    """

    @property
    def blocks(self) -> int:
        """Blocks in memory at a time: the parts in flight, and most of the next one."""
        return (self.parts_in_flight + 1) * (self.part_size // self.block_size) - self.parts_in_flight


LIMITS = Limits()

if (
    LIMITS.claim_margin < LIMITS.look_patience + LIMITS.receipt_patience + LIMITS.receipt_write
    or LIMITS.receipt_write < LIMITS.receipt_connect + LIMITS.receipt_answer
):
    raise AssertionError("A claim must outlast the look before the POST and the receipt's write after it.")
if LIMITS.beat_interval >= LIMITS.settle_grace or 3 * LIMITS.beat_interval > LIMITS.beat_patience:
    raise AssertionError(
        "A transfer must show that it lives before others take its clip, and may miss two beats."
    )
if LIMITS.journal_patience >= LIMITS.look_patience:
    raise AssertionError("A render is reserved between its claim and the POST.")
if LIMITS.part_size % LIMITS.block_size:
    raise AssertionError("A part is whole blocks.")
