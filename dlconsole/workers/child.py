"""The entry of one worker process: `python -m dlconsole.workers.child`, started by the supervisor.

Its order comes as one JSON line on standard input, so that no password stands in the process list.
The pipe stays open; when it ends, the supervisor is gone, and the worker drains and ends as well.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Final

import msgspec

from dlconsole import log
from dlconsole.errors import DlconsoleError
from dlconsole.services import descriptors
from dlconsole.services.supervisor import EXIT_UNUSABLE, Order, stop_signals
from dlconsole.settings import Settings
from dlconsole.workers.downloader import Downloader

_EXIT_AT_ONCE: Final = 130
_GC_THRESHOLD: Final = 20_000
_SAME_SIGNAL_S: Final = 1.0


def main() -> int:
    """Run one worker; 0: ended as it should, EXIT_UNUSABLE: a person must act, else: a fault."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    settings = Settings.model_validate_json(order.settings)
    logger = log.configure(settings.log, worker=order.index, pid=os.getpid())
    # Not even a folder is made for a supervisor that is gone: it may have cleaned up already.
    if select.select([0], [], [], 0)[0] and not os.read(0, 1):
        return 0
    settings = _within_limits(settings, logger)
    try:
        downloader = Downloader(settings, logger, until_empty=order.until_empty)
    except DlconsoleError as error:
        logger.error("worker cannot start", error=str(error))
        return EXIT_UNUSABLE
    # What is here now stays; what comes is nearly all freed by counting: cycles are rare.
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    _stop_on_signals(downloader)
    _stop_with_supervisor(downloader)
    try:
        return 0 if downloader.run() else 1
    except DlconsoleError as error:
        logger.error("worker cannot go on", error=str(error))
        return EXIT_UNUSABLE
    except Exception:
        logger.exception("worker failed")
        return 1


def _within_limits(settings: Settings, logger: log.Logger) -> Settings:
    """With as many fetches at once as the limit on open files allows, raised as far as it may be."""
    descriptors.raise_limit()
    worker = settings.worker
    concurrency = descriptors.affordable(worker.concurrency)
    if concurrency == worker.concurrency:
        return settings
    logger.warning(
        "fewer fetches at once: too few files may be open",
        fetches=concurrency,
        instead_of=worker.concurrency,
        allowed=descriptors.most(),
        todo=f"raise the limit to {descriptors.wanted(worker.concurrency)} (LimitNOFILE= in its service)",
    )
    return settings.model_copy(update={"worker": worker.model_copy(update={"concurrency": concurrency})})


def _stop_on_signals(downloader: Downloader) -> None:
    """The first signal drains; a second one ends at once, and what was claimed stays claimed.

    One that follows at once is the same one: a service manager signals the whole group, and the
    supervisor passes its own on.
    """
    asked_at: float | None = None

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = time.monotonic()
            downloader.request_stop()
        elif time.monotonic() - asked_at > _SAME_SIGNAL_S:
            os._exit(_EXIT_AT_ONCE)

    for number in stop_signals():
        signal.signal(number, handle)


def _stop_with_supervisor(downloader: Downloader) -> None:
    def watch() -> None:
        # The descriptor itself: a thread that holds the buffered reader's lock would break the exit.
        while os.read(0, 4096):
            pass
        downloader.request_stop()

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
