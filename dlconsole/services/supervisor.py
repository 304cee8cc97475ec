"""Local worker processes: start them, replace those that die, stop them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, Final, Literal

import msgspec

from dlconsole.log import Logger
from dlconsole.services.permission import require_writable
from dlconsole.settings import Settings

EXIT_UNUSABLE: Final = 3
"""A worker's exit status when another try would end the same way: it is not replaced."""
_KEEP_FREED_MEMORY: Final = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
"""For glibc: a worker fills and frees the same few megabytes all the time; giving them back to the kernel in
between costs more page faults than all checks of a picture together.
"""
_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_KILL_S: Final = 5.0
_HEALTHY_S: Final = 60.0
"""A worker that lived this long died of something new: the delays begin anew."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that end a worker cleanly; not SIGHUP where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT) if ignored else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Order(msgspec.Struct, frozen=True):
    """What a worker process is told on its standard input. `settings` is a Settings model as JSON."""

    index: int
    settings: str
    until_empty: bool


@dataclass(slots=True)
class _Slot:
    """One place in the group, and the process in it now; None while it waits for `start_at`."""

    index: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    delay_s: float = _FIRST_DELAY_S
    start_at: float = 0.0
    ended: bool = False


class WorkerGroup:
    """Keeps `settings.worker.processes` worker processes running. Call `tend` a few times a second.

    Each is in a session of its own, so Ctrl-C on the terminal reaches only the supervisor, which
    passes it on.
    """

    def __init__(
        self, settings: Settings, log: Logger, *, until_empty: bool = False, stderr: IO[bytes] | None = None
    ) -> None:
        """Raises ReadOnlyError: workers change the queue."""
        require_writable(settings, "downloading")
        self.failed = False
        """Whether a worker ended for a reason that a person must see to, or was ended by force."""
        self.replaced = 0
        """How many died and were replaced."""
        self._order = Order(0, settings.model_dump_json(), until_empty)
        self._log = log
        self._stderr = stderr
        self._grace_s = settings.worker.drain_s + 15
        self._slots = [_Slot(index) for index in range(settings.worker.processes)]
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    @property
    def ended(self) -> bool:
        """Whether every worker has ended and none will be started again."""
        return all(slot.process is None and (slot.ended or self._stopping) for slot in self._slots)

    def tend(self) -> None:
        """Start what is due, and see to what has died. Does not wait."""
        for slot in self._slots:
            if slot.process is not None:
                self._look_at(slot)
            elif not slot.ended and not self._stopping and time.monotonic() >= slot.start_at:
                self._start(slot)

    def stop(self, how: Literal["drain", "kill"] = "drain") -> None:
        """Ask every worker to drain, or end them now; starts no more."""
        self._stopping = True
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.kill() if how == "kill" else slot.process.terminate()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the workers to end; those that have not after `timeout_s` are killed.

        Without a time: the workers' own deadline, and some more.
        """
        deadline = time.monotonic() + (self._grace_s if timeout_s is None else timeout_s)
        for slot in self._slots:
            if slot.process is None:
                continue
            try:
                slot.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.warning("worker killed: it did not stop in time", pid=slot.process.pid)
                slot.process.kill()
                self._wait_for_killed(slot, slot.process)
            self._look_at(slot)

    def _wait_for_killed(self, slot: _Slot, process: subprocess.Popen[bytes]) -> None:
        """Not for ever: in a call to a disk that hangs, the kernel may keep a killed process."""
        try:
            process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            self._log.error(
                "a killed worker stays: the kernel holds it in a call to a disk that hangs", pid=process.pid
            )
            slot.process = None
            slot.ended = self.failed = True

    def _start(self, slot: _Slot) -> None:
        # S603: the arguments are our own; no shell. -P: nothing is imported from the working directory.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dlconsole.workers.child"],
            stdin=subprocess.PIPE,
            stderr=self._stderr,
            env=_KEEP_FREED_MEMORY | os.environ,
            start_new_session=True,
        )
        slot.process, slot.started = process, time.monotonic()
        if self._stopping:  # a signal came while it was being started: `stop` could not see it
            process.terminate()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(msgspec.structs.replace(self._order, index=slot.index)))
            process.stdin.write(b"\n")
            process.stdin.flush()
        except BrokenPipeError:  # it died at once; `tend` sees to it
            pass
        self._log.info("worker started", worker=slot.index, child=process.pid)

    def _look_at(self, slot: _Slot) -> None:
        process = slot.process
        if process is None or process.poll() is None:
            return
        code = process.returncode
        if process.stdin is not None:
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
        slot.process = None
        if code == 0 or (self._stopping and code == -signal.SIGTERM):  # SIGTERM kills only before it begins
            slot.ended = True
        elif code == EXIT_UNUSABLE:
            slot.ended = self.failed = True
        elif self._stopping:
            slot.ended = self.failed = True
            self._log.warning("worker ended hard", worker=slot.index, child=process.pid, code=code)
        else:
            self._replace(slot, process.pid, code)

    def _replace(self, slot: _Slot, pid: int, code: int) -> None:
        if time.monotonic() - slot.started >= _HEALTHY_S:
            slot.delay_s = _FIRST_DELAY_S
        self._log.error(
            "worker died and is replaced",
            worker=slot.index,
            child=pid,
            cause=f"signal {-code}" if code < 0 else f"exit status {code}",
            again_in_s=slot.delay_s,
        )
        self.replaced += 1
        slot.start_at = time.monotonic() + slot.delay_s
        slot.delay_s = min(_MAX_DELAY_S, slot.delay_s * 2)
