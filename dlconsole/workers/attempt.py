"""A task under way in the fetch loop."""

from __future__ import annotations

from typing import Final

import msgspec

from dlconsole.model import Task
from dlconsole.services.queue import Claimed
from dlconsole.workers.fetch.engine import Spill
from dlconsole.workers.fetch.urls import Target
from dlconsole.workers.places import Place

NOWHERE: Final = Place("", "")
_NO_TARGET: Final = Target("", "", 0)


class Attempt(msgspec.Struct, eq=False, gc=False):
    """A task under way: what was claimed, in which session, and what is known of it so far. `started_ms` is
    by this host's clock.
    """

    claimed: Claimed
    epoch: int
    task: Task
    started_ms: int
    place: Place = NOWHERE
    """Where its image goes, as the task says."""
    target: Target = _NO_TARGET
    """What is fetched."""
    site: str = ""
    """The host that answered, after redirects."""
    final_url: str = ""
    """Where redirects led to; '' where they did not."""
    sha256: str = ""
    md5: str = ""
    """Of the body, where they are asked for."""


class Picture(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An image that has passed the checks so far, on its way into the store."""

    attempt: Attempt
    body: bytearray | Spill
    format: str
    width: int
    height: int
