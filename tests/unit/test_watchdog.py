"""Two threads that watch each other, on a clock of the test's own."""

from __future__ import annotations

from dlconsole.workers.watchdog import Thread, Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


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
