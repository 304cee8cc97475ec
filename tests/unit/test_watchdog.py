"""Two threads that watch each other, on a clock of the test's own."""

from __future__ import annotations

import subprocess
import sys

from unit_support import Clock

from dlconsole.workers.watchdog import EXIT_STALLED, Thread, Watchdog


def test_a_thread_that_stops_is_noticed_by_the_other_after_the_time() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    for _ in range(60):
        clock.now += 1
        assert watchdog.beat(Thread.COURIER) == 0
    clock.now += 1
    assert watchdog.beat(Thread.COURIER) == 61


def test_two_that_move_never_bite() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    for _ in range(1000):
        clock.now += 10
        assert watchdog.beat(Thread.LOOP) == watchdog.beat(Thread.COURIER) == 0


def test_a_suspended_process_gets_its_whole_time_again() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    watchdog.beat(Thread.LOOP)
    watchdog.beat(Thread.COURIER)
    clock.now += 3600
    assert watchdog.beat(Thread.LOOP) == 0
    clock.now += 59
    assert watchdog.beat(Thread.LOOP) == 0
    assert watchdog.beat(Thread.COURIER) == 0
    clock.now += 1
    assert watchdog.beat(Thread.LOOP) == 0


def test_the_sentry_notices_whichever_has_stopped() -> None:
    for moves in (Thread.LOOP, Thread.COURIER):
        clock = Clock()
        watchdog = Watchdog(60, clock)
        for _ in range(60):
            clock.now += 1
            watchdog.beat(moves)
            assert watchdog.beat(Thread.SENTRY) == 0
        clock.now += 1
        watchdog.beat(moves)
        assert watchdog.beat(Thread.SENTRY) == 61


def test_where_both_have_stopped_the_process_ends_whatever_its_log_does() -> None:
    """The main thread holds the lock of its log for ever."""
    code = (
        "import sys, time\n"
        "from dlconsole.workers import watchdog\n"
        "watchdog.LAST_RESORT_S = 0\n"
        "watchdog.Watchdog(2.5).start_sentry()\n"
        "sys.stderr.write('x' * (1 << 20))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.wait(60) == EXIT_STALLED


def test_a_sentry_that_was_ended_ends_nobody() -> None:
    code = (
        "import threading\n"
        "from dlconsole.workers import watchdog\n"
        "watchdog.LAST_RESORT_S = 0\n"
        "watched = watchdog.Watchdog(2.5)\n"
        "watched.start_sentry()\n"
        "watched.end_sentry()\n"
        "[thread.join() for thread in threading.enumerate() if thread.name == 'sentry']\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
