"""The nouns of the house: frozen, without I/O. `docs/architecture.md` has the words.

Times ending in `_ms` are milliseconds of the Redis server's clock since the epoch (`LedgerLine` has this
host's); sizes are bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec

_DATASET: Final = re.compile(r"[^\W_][\w.\-]{0,99}")

PresetName = Literal[
    "", "laion400m", "laion2b", "coyo700m", "cc3m", "cc12m", "datacomp", "wukong", "opendatalab-laion"
]
"""Data sets whose lists are known; see `services/presets.py`."""

DATASET_RULE: Final = (
    "1 to 100 letters, digits, '_', '-' or '.', the first a letter or a digit (it names keys and folders)"
)


def is_dataset_name(name: str) -> bool:
    """Whether `name` can be a key prefix and a folder: no braces, slashes, spaces, or leading dot."""
    return _DATASET.fullmatch(name) is not None


class FailureKind(StrEnum):
    """Why a task failed: a closed list. Disk-full and Redis trouble are not here: the worker pauses."""

    HTTP_STATUS = "http_status"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    NOT_IMAGE = "not_image"
    TRUNCATED = "truncated"
    HASH_MISMATCH = "hash_mismatch"
    BLOCKED_ADDRESS = "blocked_address"
    OPT_OUT = "opt_out"
    REDIRECTS = "redirects"
    BAD_TASK = "bad_task"
    BAD_PATH = "bad_path"
    CRASHED = "crashed"

    @property
    def retryable(self) -> bool:
        """Whether another attempt can heal it; for `http_status` the status decides, see `Failure`."""
        return self in _RETRYABLE


_RETRYABLE: Final = frozenset(
    {
        FailureKind.HTTP_STATUS,
        FailureKind.DNS,
        FailureKind.CONNECT,
        FailureKind.TLS,
        FailureKind.TIMEOUT,
        FailureKind.TRUNCATED,
    }
)
_RETRYABLE_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

KEY_DIGITS: Final = 12
"""How much of a list's id begins the keys of its rows, in hex digits: that two of 100,000 lists have the same
has a chance of 2 in 100,000.
"""
STATUS_NONE: Final = 900
"""What the legacy error item carries as `status` when there was no HTTP status."""


class Task(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"history": "_retry"}):
    """A queue item: where to fetch, where to put it, and, as JSON that nobody has looked into, what travels
    with it. Items of others have other keys: `services/tasks.py` reads them.

    `img_path` is a path under the store, with one leading slash as the legacy feeder writes it. `hash` is
    whatever the list had in its column of that name, which need not be a digest. `key` is '' in items of
    text lists and of legacy feeders.
    """

    img_path: str
    img_url: str
    key: str = ""
    caption: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    hash: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    columns: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    history: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class LookupResult(StrEnum):
    """What a name server made of a name."""

    FOUND = "found"
    NOT_FOUND = "not_found"
    """There is no such name, or it has no address."""
    TROUBLE = "trouble"
    """The servers failed, refused, or could not be reached."""
    TIMEOUT = "timeout"


class Failure(msgspec.Struct, frozen=True, gc=False):
    """One attempt that gave no image. `status` is the HTTP code, or None when there was none."""

    kind: FailureKind
    message: str
    status: int | None = None
    retry_after_s: float | None = None

    @property
    def retryable(self) -> bool:
        """Whether another attempt can heal it."""
        if self.kind is FailureKind.HTTP_STATUS:
            return self.status in _RETRYABLE_STATUSES
        return self.kind.retryable


class Stored(msgspec.Struct, frozen=True, gc=False):
    """One attempt that put a whole image into the store. `format` is Pillow's name for it; width and
    height are pixels, as stored (no orientation applied), 0 where the header does not say.
    """

    path: str
    format: str
    size_bytes: int
    width: int = 0
    height: int = 0


Outcome = Stored | Failure


class LedgerLine(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One final outcome, a line of `<store>/<dataset>/ledger/*.jsonl`; what has its default is left out.

    Of several lines with one key (a worker died between its line and its ack) the one that counts has the
    greatest `ended_ms`, then the later file name, then the later place in the file.
    """

    key: str
    """The item's own `key`, or else the first 32 hex digits of the SHA-256 of path, NUL and URL as fed; of an
    item that is no task, of all its bytes.
    """
    outcome: Literal["stored", "failed"]
    url: str
    final_url: str = ""
    """Where redirects led to; '' where they did not."""
    path: str = ""
    """Below the store, with a leading slash: where the image is, or would have gone."""
    status: int | None = None
    """The HTTP status; None where there was none."""
    kind: str | None = None
    """The failure kind; None for a stored one."""
    message: str = ""
    bytes: int = 0
    format: str = ""
    """Pillow's name for it."""
    width: int = 0
    height: int = 0
    """Pixels, as stored; 0 where the header does not say."""
    sha256: str = ""
    md5: str = ""
    """Of the body, lower-case hex; '' where not asked for, or where there is none."""
    attempts: int = 1
    """How often it was tried, this time included."""
    worker: str = ""
    """The session's id."""
    started_ms: int = 0
    ended_ms: int = 0
    """When this attempt began and ended: ms since the epoch, by this host's clock."""
    caption: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    hash: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    columns: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """JSON as it stands in the item, byte for byte; keys that are none of ours are in `columns`."""


class SessionStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a session says of itself in each heartbeat; the value of `…:dl:workers`.

    Counts are since the session began, rates over its last few seconds.
    """

    host: str
    pid: int
    started_ms: int
    at_ms: int = 0
    state: str = "running"
    stored: int = 0
    failed: int = 0
    kinds: dict[str, int] = {}
    in_flight: int = 0
    fetching: int = 0
    bytes: int = 0
    stored_per_s: float = 0.0
    failed_per_s: float = 0.0
    bytes_per_s: float = 0.0
    cpu_percent: float = 0.0
    rss_bytes: int = 0
    concurrency: int = 0
    timings: dict[str, dict[str, int]] = {}
    """By part of a fetch (`workers/fetch/timings.py`) the counts of a `Histogram`."""
    reused: int = 0
    opened: int = 0
    """Of the sampled fetches: those on a connection that was open already, and on a new one."""
    lookups: dict[str, int] = {}
    """How many names were looked up, by `LookupResult`."""
    engine: str = "curl"
    version: str = ""
    waits: str = ""
    """What is wrong with its store, so that it starts nothing; '' while that is well."""


_Count = Annotated[int, msgspec.Meta(ge=0)]


class SiteStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one session knows of one site (a host of URLs), or of several: fetches are counted where they
    ended, redirects followed; `bytes` are those stored, and of the timings only samples are taken.
    """

    fetches: _Count = 0
    bytes: _Count = 0
    per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Fetches a second since the last report."""
    kinds: dict[str, _Count] = {}
    reused: _Count = 0
    opened: _Count = 0
    timings: dict[str, dict[str, int]] = {}
    """As in `SessionStats`, without `total`."""


class SitesReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session's sites, those most fetched from by name; the value of `…:dl:sites:<session>`."""

    sites: dict[str, SiteStats] = {}
    others: SiteStats = SiteStats()
    """All the rest together."""


class HostStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """One host as its workers see it; the value of `…:dl:hosts`. `ip` links it to the legacy hash."""

    ip: str
    at_ms: int
    store: str = ""
    disk_at_ms: int = 0
    """When the disk gave the figures that follow, by the server's clock: one that hangs keeps its last."""
    disk_total_bytes: int = 0
    disk_used_bytes: int = 0
    disk_free_bytes: int = 0
    inodes_total: int = 0
    inodes_free: int = 0
    cpu_percent: float = 0.0
    cpus: int = 0
    mem_total_bytes: int = 0
    mem_used_bytes: int = 0
    net_sent_per_s: float = 0.0
    net_recv_per_s: float = 0.0
    ended: bool = False
    """Its last session ended in order; one that goes on overwrites this at its next heartbeat."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Where all tasks are, taken in one script: the invariant
    `fed = queued + in_flight + delayed + stored + failed` can be checked on it.

    `fed` is 0 on a fleet whose feeders are legacy: they do not count.
    """

    queued: int = 0
    in_flight: int = 0
    delayed: int = 0
    stored: int = 0
    failed: int = 0
    fed: int = 0
    error_list: int = 0

    @property
    def outstanding(self) -> int:
        """Tasks that have no final outcome yet."""
        return self.queued + self.in_flight + self.delayed

    @property
    def done(self) -> int:
        """Tasks with a final outcome."""
        return self.stored + self.failed

    @property
    def missing(self) -> int | None:
        """What the invariant is off by: tasks that were fed and are nowhere; negative where there are
        more than were fed. None where it cannot be checked, because no feeder counted.
        """
        return self.fed - self.outstanding - self.done if self.fed > 0 else None


@dataclass(frozen=True, slots=True)
class Rates:
    """Speeds over the last seconds, from the counters, so legacy workers are in them.

    None where nothing can be said yet. `bytes_per_s` is what sessions report: legacy workers do not.
    """

    stored_per_s: float | None = None
    failed_per_s: float | None = None
    bytes_per_s: float | None = None
    success_ratio: float | None = None
    finish_s: float | None = None


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session with what the lease says of it. `lease_ms` is what is left; negative: run out."""

    id: str
    stats: SessionStats
    lease_ms: int

    @property
    def alive(self) -> bool:
        """Whether its lease still holds."""
        return self.lease_ms > 0


@dataclass(frozen=True, slots=True)
class HostView:
    """A host, joined from the legacy disk hash, our host records and our sessions.

    `stats` is None on a host that runs legacy scripts only; then just `disk_used_bytes` is known,
    in whole GiB, and `seen_ms` is None, because the legacy hash carries no time.
    """

    name: str
    ip: str
    disk_used_bytes: int | None
    disk_total_bytes: int | None
    seen_ms: int | None
    sessions: int
    stored_per_s: float
    bytes_per_s: float
    stats: HostStats | None = None
    waits: str = ""
    """What is wrong with its store, so that a session of it starts nothing; '' while that is well."""

    @property
    def disk_ratio(self) -> float | None:
        """Used of total, 0 to 1; None where the total is not known."""
        if not self.disk_total_bytes or self.disk_used_bytes is None:
            return None
        return self.disk_used_bytes / self.disk_total_bytes


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One point of the fleet's history stream, every 10 s."""

    at_ms: int
    stored: int
    failed: int
    queued: int
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RedisInfo:
    """The server: what it is and what is unsafe about it. `max_bytes` 0 means no limit."""

    version: str = ""
    used_bytes: int = 0
    max_bytes: int = 0
    policy: str = ""
    aof: bool = False
    role: str = "master"
    clients: int = 0
    fsync: str = ""
    """Its `appendfsync`; '' where that was not asked for, or may not be."""
    aof_ok: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """The fleet-wide pause: who asked for it, why, and when."""

    by: str
    why: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """One immutable picture of the fleet. `unreadable` counts records that were not ours to parse."""

    dataset: str
    at_ms: int
    counts: Counts
    rates: Rates
    hosts: tuple[HostView, ...]
    sessions: tuple[SessionView, ...]
    history: tuple[HistoryPoint, ...]
    redis: RedisInfo
    pause: Pause | None = None
    unreadable: int = 0
