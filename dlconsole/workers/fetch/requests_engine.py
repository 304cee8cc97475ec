"""The portable engine: threads, each with a `requests` session, for those who need requests' adapters.

Each thread fetches one hop at a time; names, redirects and outcomes are the loop's matter, see `hops.py`.
The loop looks at what runs, and cuts a hop that has reached a limit, see `requests_session.py`.
"""

from __future__ import annotations

import os
import select
import ssl
import threading
import time
from collections import deque
from http.client import IncompleteRead
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from dlconsole.errors import ConfigError
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import DnsSettings, FetchSettings
from dlconsole.workers.faults import OnFault, failure_of, unnoticed
from dlconsole.workers.fetch.answer import Receiver
from dlconsole.workers.fetch.engine import ANY_HOSTS, IN_MEMORY, Buffers, Fetched, Hosts, NotKept, Result
from dlconsole.workers.fetch.fetch import Fetch
from dlconsole.workers.fetch.hops import Hops
from dlconsole.workers.fetch.requests_session import Cut, Hop, Line, Session, tls_context

T = TypeVar("T")

_READ_BYTES: Final = 16 * 1024
_LOOK_S: Final = 0.1
"""How often the limits of what runs are looked at."""
_JOIN_S: Final = 2.0
"""How long `close` waits for its threads, all together; they hold nothing that matters."""


class RequestsEngine(Hops[T]):
    """See `Engine`. Owns up to `concurrency` threads, started as they are needed."""

    def __init__(
        self,
        settings: FetchSettings,
        dns: DnsSettings,
        concurrency: int,
        hosts: Hosts = ANY_HOSTS,
        buffers: Buffers = IN_MEMORY,
        on_fault: OnFault = unnoticed,
    ) -> None:
        """Raises ConfigError, see `Hops`; also for a proxy that requests cannot use."""
        if settings.proxy.startswith("socks"):
            raise ConfigError("fetch.proxy: the engine 'requests' has no SOCKS; the engine 'curl' has")
        self._epoll = select.epoll()
        super().__init__(settings, dns, self._epoll, concurrency, hosts, on_fault)
        self._context = tls_context(settings)
        self._concurrency = concurrency
        self._buffers = buffers
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._running: set[Hop[T]] = set()
        self._jobs: SimpleQueue[Hop[T] | None] = SimpleQueue()
        self._done: deque[tuple[Hop[T], Fetched | Failure | NotKept | str | Exception]] = deque()
        """Hops that have ended, and how; an exception is a fault of ours."""
        self._threads: list[threading.Thread] = []

    @property
    def free(self) -> int:
        """How many more fetches can be started now; a host that is being looked up needs no thread yet."""
        return self._room(self._concurrency - len(self._running))

    @property
    def running(self) -> int:
        """How many fetches are under way, those included whose host is being looked up."""
        return len(self._running) + self._without_slot

    def poll(self, timeout_s: float) -> list[Result[T]]:
        """Move on, waiting up to `timeout_s` for something to happen; what has finished."""
        self._launch()
        dns_due_at = self._dns_due_at()
        for fd, events in self._epoll.poll(self._wait_s(timeout_s, dns_due_at)):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                self._resolver.process(fd, events)
        self._see_to_names(dns_due_at)
        while self._done:
            hop, outcome = self._done.popleft()
            if hop in self._running:  # else it was cancelled
                self._running.remove(hop)
                if self.timings.wants_sample and hop.first_byte_at:
                    hop.sample(self.timings)
                if isinstance(outcome, Exception):
                    outcome = self._fault(hop.fetch, outcome)
                self._go_on(hop.fetch, outcome)
        now = time.monotonic()
        for hop in self._running:
            reached = hop.limit_reached(now)
            if reached is not None:
                hop.cut(reached)
        return self._take_ended()

    def _wait_s(self, timeout_s: float, dns_due_at: float | None) -> float:
        if self._done:
            return 0.0
        if self._running:
            timeout_s = min(timeout_s, _LOOK_S)
        return self._due_in_s(timeout_s, dns_due_at)

    def wake(self) -> None:
        """End a `poll` that waits; other threads and signal handlers may call this, also too late."""
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def cancel_all(self) -> list[T]:
        """Drop every running fetch; their tokens. Their threads end with them a moment later."""
        dropped = self._drop_waiting()
        for hop in self._running:
            hop.cut(Failure(FailureKind.CRASHED, "cancelled"))
            dropped += hop.fetch.tokens
        self._running.clear()
        return dropped

    def close(self) -> None:
        """Free every resource; a thread that does not end in time is left behind, without anything to do."""
        self.cancel_all()
        for _ in self._threads:
            self._jobs.put(None)
        until = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._resolver.close()
        self._epoll.close()
        with self._wake_lock:  # a thread that was left behind may be about to write
            wake_fd, self._wake_fd = self._wake_fd, -1
            os.close(wake_fd)

    def _has_slot(self) -> bool:
        """Whether a thread is free, or can be started. Where none can, what is ready waits for one of those
        that there are; without any it is begun all the same, and ends.
        """
        busy = len(self._running)
        if busy < len(self._threads):
            return True
        return busy < self._concurrency and (self._start_thread() is None or not self._threads)

    def _begin(self, fetch: Fetch[T]) -> Failure | None:
        if not self._threads:
            error = self._start_thread()
            if error is not None:
                return failure_of(error)
        hop = Hop(fetch, self._settings)
        self._running.add(hop)
        self._jobs.put(hop)
        return None

    def _start_thread(self) -> RuntimeError | None:
        """One more; or why the system has none: too little memory, or a limit on processes."""
        name = f"fetch-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._on_fault(error, name)
            return error
        self._threads.append(thread)
        return None

    # -- the threads -----------------------------------------------------------------------

    def _work(self) -> None:
        line = Line(self._settings, self._guard, self._buffers)
        with Session(line, self._context, self._settings) as session:
            while (hop := self._jobs.get()) is not None:
                self._run(session, line, hop)
                with self._wake_lock:
                    self.wake()

    def _run(self, session: Session, line: Line, hop: Hop[T]) -> None:
        """One hop; a thread that waits for the next holds nothing of its body."""
        line.hop, hop.receiver = hop, line.receiver
        outcome: Fetched | Failure | NotKept | str | Exception
        try:
            outcome = self._outcome(session, line, hop)
        except Exception as error:  # noqa: BLE001  (a fetch's end, not the thread's)
            outcome = error
        hop.let_go()
        line.receiver.reset_answer()  # the body is the outcome's alone
        self._done.append((hop, outcome))

    def _outcome(self, session: Session, line: Line, hop: Hop[T]) -> Fetched | Failure | NotKept | str:
        while True:
            line.receiver.reset_answer(hop.fetch.text_bytes)
            try:
                self._receive(session, line, hop)
            except Exception as error:  # noqa: BLE001  (requests, urllib3 and ssl raise from five trees)
                if hop.may_try_again and not line.receiver.headers:
                    hop.ready_at, hop.reused = 0.0, False
                    continue
                return _failure(line.receiver, hop, error)
            if hop.failure is not None:  # to a read, a connection that was cut looks like one that ended
                return _failure(line.receiver, hop, Cut())
            return line.receiver.outcome(hop.fetch.target.url)

    def _receive(self, session: Session, line: Line, hop: Hop[T]) -> None:
        """Read as much of the answer as matters into the receiver."""
        left_s = max(0.001, hop.fetch.deadline - time.monotonic())
        timeout_s = (hop.connect_left_s, left_s)
        with session.get_plainly(hop.fetch.target.url, timeout_s, self._settings.proxy) as response:
            receiver = line.receiver
            receiver.look_at_headers()
            while not receiver.enough and (data := response.raw.read1(_READ_BYTES)):
                receiver.write(data)


def _failure(receiver: Receiver, hop: Hop[Any], error: Exception) -> Failure | NotKept | str:
    """What an exception means: what the answer had decided before, what the loop or the guard knows, or by
    the error that began it.
    """
    decided = receiver.decided(hop.fetch.target.url)
    if decided is not None:
        return decided
    if hop.failure is not None:
        return replace(hop.failure, status=hop.failure.status or receiver.told_status)
    cause = _cause(error)
    return Failure(
        _kind(hop, cause, answered=receiver.status == 200),
        str(cause)[:300] or type(cause).__name__,
        receiver.told_status,
    )


def _cause(error: BaseException) -> BaseException:
    """The error of Python's own that requests and urllib3 have wrapped in theirs."""
    while type(error).__module__.partition(".")[0] in {"requests", "urllib3"}:
        told = [argument for argument in error.args if isinstance(argument, BaseException)]
        inner = [*told, error.__cause__, error.__context__]
        if not any(inner):
            break
        error = next(one for one in inner if one)
    return error


def _kind(hop: Hop[Any], cause: BaseException, *, answered: bool) -> FailureKind:
    if isinstance(cause, TimeoutError):
        return FailureKind.TIMEOUT
    if hop.in_tls and not hop.ready_at:
        return FailureKind.TLS
    # An end without goodbye, RFC 9112, 9.8; a reset is an SSLEOFError without this reason.
    cut = isinstance(cause, ssl.SSLEOFError) and cause.reason == "UNEXPECTED_EOF_WHILE_READING"
    if isinstance(cause, IncompleteRead) or (cut and answered):
        return FailureKind.TRUNCATED
    return FailureKind.CONNECT
