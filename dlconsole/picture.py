"""What the screens are shown: the last snapshot, and how fresh it is. Frozen, without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dlconsole.model import FleetSnapshot


class LinkState(StrEnum):
    """How the console stands with Redis."""

    CONNECTING = "connecting"
    LIVE = "live"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Link:
    """The connection. Times are seconds of the console's own steady clock.

    `since_s` is when the picture was last renewed (before the first one: when the console opened),
    `next_try_s` when the next attempt is due, None while one is under way.
    """

    state: LinkState
    since_s: float
    reason: str = ""
    next_try_s: float | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything a screen draws. `snapshot` is None until Redis has answered once."""

    snapshot: FleetSnapshot | None
    link: Link
    redis_name: str
    refresh_s: float
    frozen: bool = False
