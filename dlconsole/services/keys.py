"""Every Redis key of a dataset: its name, type and meaning. Nothing else spells a key.

The legacy keys are shared with fleets that still run the scripts; their names, types and meaning
are fixed. Ours begin with `{<ds>_task}:dl:`: the braces are a Redis Cluster hash tag, so that they
share the slot of the brace-less `<ds>_task`, and one script may touch both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LEGACY_DISK: Final = "tongji_worker_disk"
"""HASH, one for all datasets: host IP with `_` for `.` → used GiB, an integer."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one dataset."""

    dataset: str

    # -- shared with the legacy scripts ----------------------------------------------------

    @property
    def task(self) -> str:
        """LIST, the queue: producers `LPUSH`, workers take from the right."""
        return f"{self.dataset}_task"

    @property
    def error(self) -> str:
        """LIST of failed tasks: workers `LPUSH`, drainers take from the right."""
        return f"{self.dataset}_task_error"

    @property
    def stored(self) -> str:
        """STRING, how many tasks were stored."""
        return f"{self.dataset}_tongji_succ"

    @property
    def failed(self) -> str:
        """STRING, how many tasks failed for good."""
        return f"{self.dataset}_tongji_error"

    @property
    def fed(self) -> str:
        """STRING, how many tasks were ever fed; legacy feeders leave it alone."""
        return f"{self.dataset}_tongji_all"

    # -- ours ------------------------------------------------------------------------------

    @property
    def _prefix(self) -> str:
        return f"{{{self.dataset}_task}}:dl:"

    @property
    def lease(self) -> str:
        """ZSET: session id → lease deadline, ms of the server's clock."""
        return self._prefix + "lease"

    @property
    def sessions(self) -> str:
        """SET of every session that may still own an in-flight hash."""
        return self._prefix + "sess"

    @property
    def in_flight_prefix(self) -> str:
        """What `in_flight` begins with; scripts append a session id."""
        return self._prefix + "if:"

    def in_flight(self, session_id: str) -> str:
        """HASH: `<batch>:<i>` → the raw item; `_last` → the newest batch's number."""
        return self.in_flight_prefix + session_id

    @property
    def delayed(self) -> str:
        """ZSET: `<id>:<raw item>` → when the retry is due, ms."""
        return self._prefix + "delayed"

    @property
    def crash(self) -> str:
        """HASH: digest of an item → the sessions that died holding it since it was last finished."""
        return self._prefix + "crash"

    @property
    def parked(self) -> str:
        """ZSET: host of a URL → until when nothing is asked of it, ms of the server's clock."""
        return self._prefix + "parked"

    @property
    def refused(self) -> str:
        """ZSET: host of a URL → how often in a row the fleet was refused there, each time behind a pause."""
        return self._prefix + "refused"

    @property
    def workers(self) -> str:
        """HASH: session id → `SessionStats` as JSON, overwritten each heartbeat."""
        return self._prefix + "workers"

    @property
    def sites_prefix(self) -> str:
        """What `sites` begins with; a script appends session ids."""
        return self._prefix + "sites:"

    def sites(self, session_id: str) -> str:
        """STRING: the session's `SitesReport` as JSON, with a TTL."""
        return self.sites_prefix + session_id

    @property
    def hosts(self) -> str:
        """HASH: host name → `HostStats` as JSON."""
        return self._prefix + "hosts"

    @property
    def feed(self) -> str:
        """HASH: a list's id → how far it is fed, `Position` as JSON; moved by the pushes themselves."""
        return self._prefix + "feed"

    @property
    def control(self) -> str:
        """HASH: `paused`, `by`, `why`, `at`: the fleet-wide pause."""
        return self._prefix + "control"

    @property
    def history(self) -> str:
        """STREAM: one point every 10 s for 24 h, capped."""
        return self._prefix + "history"

    @property
    def history_turn(self) -> str:
        """STRING with a TTL: whoever sets it writes the next history point."""
        return self._prefix + "history:turn"

    # -- ours, beside the error list: `{<ds>_task_error}` shares its slot -----------------------

    @property
    def _error_prefix(self) -> str:
        return f"{{{self.error}}}:dl:"

    @property
    def drainers(self) -> str:
        """SET of every drainer that may own a spool."""
        return self._error_prefix + "drainers"

    def drainer(self, drainer_id: str) -> str:
        """HASH: `run` (token of its present process), `kind`, `host`, `place`, `seen` (ms of the server's
        clock), `open` (the batch whose spool exists); of a requeue also `last`, `moved`.
        """
        return f"{self._error_prefix}drainer:{drainer_id}"

    def spool_prefix(self, drainer_id: str) -> str:
        """What a drainer's spools begin with; behind it stands the batch's number."""
        return f"{self._error_prefix}spool:{drainer_id}:"

    def spool(self, drainer_id: str, batch: int) -> str:
        """LIST: errors that were taken for export or requeue, oldest first, until they are safe."""
        return f"{self.spool_prefix(drainer_id)}{batch}"

    @property
    def drain_source(self) -> str:
        """STRING: a random name for this error list, so that a folder knows which list it drains."""
        return self._error_prefix + "source"

    def requeued(self, chunk: str) -> str:
        """SET of integers: which lines of this chunk of an exported file were requeued; with a TTL."""
        return f"{self._error_prefix}requeued:{chunk}"

    @property
    def counted(self) -> list[str]:
        """The keys of the `counts` script, in its order."""
        return [self.task, self.error, self.stored, self.failed, self.fed, self.delayed, self.sessions]
