"""Pictures are decoded in processes of their own, a few per worker, so that a bomb, a hang or a crash is the
failure of one task.

A thread waits for each process, and the fetch loop for neither: it submits, is woken, and takes verdicts.
A process that dies is replaced, and its picture tried once more in the new one: the damage may have been
done by the one before it, or by a person. Who ends two processes is at fault.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from dlconsole.errors import ConfigError, StoreError
from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind
from dlconsole.settings import ENV_PREFIX, WorkerSettings
from dlconsole.workers.decoder import ORDER
from dlconsole.workers.fetch.engine import Spill

T = TypeVar("T")

_START_S: Final = 60.0
"""How long a process may take until it is ready: an interpreter and Pillow, on a host that is busy."""
_MAX_PAUSE_S: Final = 30.0
_MAX_LINE_BYTES: Final = 1024
_TRIES: Final = 2
_KINDS: Final = {b"truncated": FailureKind.TRUNCATED, b"not_image": FailureKind.NOT_IMAGE}


class DecoderDied(Exception):
    """A decoder's process ended, or said what none says; why."""


class Decoder:
    """One process that decodes; used by one thread, killed by any."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Start it. Raises OSError."""
        self._timeout_s = settings.verify_timeout_s
        limits = (settings.verify_memory_bytes, settings.max_pixels, settings.verify_timeout_s)
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dlconsole.workers.decoder", *map(str, limits)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libtiff writes there what it thinks of each picture
                # It decodes what strangers made: the password of Redis is none of its business.
                env={key: text for key, text in os.environ.items() if not key.startswith(ENV_PREFIX)},
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        """Raises DecoderDied, with what it said."""
        try:
            line = self._line(time.monotonic() + _START_S)
        except TimeoutError:
            raise DecoderDied(f"it was not ready within {_START_S:g} s") from None
        if line != b"ready":
            raise DecoderDied(line.decode("ascii", "replace"))

    def decode(self, body: bytes | bytearray, image_format: str) -> Failure | None:
        """Decode one picture: None where that went well. Raises DecoderDied, and TimeoutError where the
        process is to be ended.
        """
        deadline = time.monotonic() + self._timeout_s
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(ORDER.pack(f"{image_format:<4}".encode(), len(body)))
            self._socket.sendall(body)
        except TimeoutError:
            raise
        except OSError:  # it died before it had read everything
            raise DecoderDied(self._cause()) from None
        line = self._line(deadline)
        if line == b"ok":
            return None
        verdict, _, why = line.partition(b" ")
        if verdict not in _KINDS:
            raise DecoderDied("it had too little memory" if line == b"memory" else f"it said {line!r}")
        return Failure(_KINDS[verdict], why.decode("ascii", "replace"), 200)

    def kill(self) -> None:
        """End it, whatever it does, and let a thread that waits for it go on."""
        self._process.kill()

    def close(self) -> None:
        """End it and forget it."""
        self.kill()
        self._process.wait()
        self._socket.close()

    def _line(self, deadline: float) -> bytes:
        """What it says next. Raises DecoderDied, TimeoutError."""
        said = b""
        while not said.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            try:
                more = self._socket.recv(_MAX_LINE_BYTES)
            except ConnectionError:
                more = b""
            said += more
            if not more or len(said) > _MAX_LINE_BYTES:
                raise DecoderDied(self._cause())
        return said[:-1]

    def _cause(self) -> str:
        self.kill()
        code = self._process.wait()
        return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit status {code}"


@dataclass(frozen=True, slots=True)
class _Job(Generic[T]):
    """A picture to decode, with the token that its verdict goes out with."""

    token: T
    body: bytes | bytearray | Spill
    image_format: str


class DecoderPool(Generic[T]):
    """The processes of one worker. All methods are for the fetch loop's thread."""

    def __init__(self, settings: WorkerSettings, log: Logger, wake_loop: Callable[[], None]) -> None:
        self.pending = 0
        """How many pictures were submitted and not taken yet."""
        self._settings = settings
        self._log = log
        self._wake_loop = wake_loop
        self._jobs: queue.SimpleQueue[_Job[T] | None] = queue.SimpleQueue()
        self._done: deque[tuple[T, Failure | StoreError | None]] = deque()
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._decoders: set[Decoder] = set()
        self._threads = [
            threading.Thread(target=self._work, name=f"decoder-{index}", daemon=True)
            for index in range(settings.verify_processes)
        ]

    def start(self) -> None:
        """Begin. Raises ConfigError where no process gets ready: then none ever would."""
        try:
            trial = Decoder(self._settings)
            try:
                trial.wait_until_ready()
            finally:
                trial.close()
        except (DecoderDied, OSError) as error:
            raise ConfigError(f"worker.verify = 'decode': the decoder does not start: {error}") from error
        for thread in self._threads:
            thread.start()

    def submit(self, token: T, body: bytes | bytearray | Spill, image_format: str) -> None:
        """Have a picture decoded; `body` must not change any more. One that is in a file is read when it is
        its turn, so that what waits takes no memory.
        """
        self.pending += 1
        self._jobs.put(_Job(token, body, image_format))

    def take(self) -> list[tuple[T, Failure | StoreError | None]]:
        """The verdicts since the last call, with their tokens; None: it could be decoded; StoreError: its
        file could not be read.
        """
        if self._failure is not None:
            raise self._failure
        taken = [self._done.popleft() for _ in range(len(self._done))]
        self.pending -= len(taken)
        return taken

    def cancel_all(self) -> None:
        """Drop what no process has begun. Verdicts on the rest still come."""
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                return
            self.pending -= 1

    def close(self) -> None:
        """End every process and thread."""
        self.cancel_all()
        self._closing.set()
        with self._lock:
            for decoder in self._decoders:
                decoder.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    # -- the threads ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._decode_until_closed()
        except Exception as error:  # noqa: BLE001  (a fault of ours: `take` raises it in the loop)
            self._failure = error
            self._wake_loop()

    def _decode_until_closed(self) -> None:
        """Decode one picture after the other; a process is started when it is needed."""
        decoder: Decoder | None = None
        while (job := self._jobs.get()) is not None:
            verdict, decoder = self._judge(job, decoder)
            if self._closing.is_set():
                break
            self._done.append((job.token, verdict))
            del job  # or it would be held until the next one comes
            self._wake_loop()
        if decoder is not None:
            self._drop(decoder)

    def _judge(
        self, job: _Job[T], decoder: Decoder | None
    ) -> tuple[Failure | StoreError | None, Decoder | None]:
        """The verdict on a picture, and the process to go on with, if it lives."""
        try:
            body = job.body if isinstance(job.body, (bytes, bytearray)) else job.body.read()
        except StoreError as error:
            return error, decoder
        why = ""
        for _ in range(_TRIES):
            decoder = decoder or self._new_decoder()
            if decoder is None:  # closing: nobody waits for the verdict
                return None, None
            try:
                return decoder.decode(body, job.image_format), decoder
            except TimeoutError:
                self._drop(decoder)
                why = f"decoding took more than {self._settings.verify_timeout_s:g} s"
                return Failure(FailureKind.NOT_IMAGE, why, 200), None
            except DecoderDied as error:
                self._drop(decoder)
                decoder, why = None, str(error)
                if not self._closing.is_set():
                    self._log.warning("a decoder ended; it is replaced", why=why)
        return Failure(FailureKind.NOT_IMAGE, f"decoding ended its process {_TRIES} times: {why}", 200), None

    def _new_decoder(self) -> Decoder | None:
        """A process that is ready: waits for it as long as it takes, because no picture is at fault where
        the host has no room for one. None while closing.
        """
        pause_s = 1.0
        while True:
            decoder: Decoder | None = None
            try:
                with self._lock:
                    if self._closing.is_set():
                        return None
                    decoder = Decoder(self._settings)
                    self._decoders.add(decoder)
                decoder.wait_until_ready()
                return decoder
            except (DecoderDied, OSError) as error:
                if decoder is not None:
                    self._drop(decoder)
                if not self._closing.is_set():
                    self._log.error("a decoder does not start; pictures wait for it", why=str(error))
                self._closing.wait(pause_s)
                pause_s = min(_MAX_PAUSE_S, pause_s * 2)

    def _drop(self, decoder: Decoder) -> None:
        with self._lock:
            self._decoders.discard(decoder)
        decoder.close()
