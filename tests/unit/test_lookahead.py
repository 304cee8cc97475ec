"""Lookups run ahead of the slots as far as that is useful."""

from __future__ import annotations

from unit_support import Clock

from dlconsole.workers.fetch.lookahead import Lookahead


class Fetch:
    expected_since = 0.0


def started(ahead: Lookahead, count: int) -> list[Fetch]:
    fetches = [Fetch() for _ in range(count)]
    for fetch in fetches:
        ahead.add(fetch)
    return fetches


def test_where_names_are_known_nothing_is_started_ahead() -> None:
    ahead = Lookahead(64)
    for _ in range(1000):
        ahead.was_known()
    assert ahead.room == 0


def test_where_no_name_is_known_there_are_as_many_ahead_as_slots() -> None:
    ahead = Lookahead(64)
    fetches = started(ahead, 200)
    for fetch in fetches:
        ahead.remove(fetch)
    assert 60 <= ahead.room <= 64
    assert started(ahead, 10) and 50 <= ahead.room <= 54


def test_dead_names_take_up_room_for_about_twice_a_lookups_time_only() -> None:
    clock = Clock()
    ahead = Lookahead(64, clock)
    for _ in range(100):
        ahead.learn(0.1)
    dead = started(ahead, 200)
    assert ahead.room < 0
    assert clock.now + 0.15 < ahead.late_at < clock.now + 0.3
    clock.now += 0.15
    ahead.drop_late_ones()
    assert ahead.expected == 200
    clock.now += 0.15
    ahead.drop_late_ones()
    assert ahead.expected == 0 and ahead.room > 0
    for fetch in dead:  # given up in the end
        ahead.remove(fetch)
    assert ahead.expected == 0


def test_a_fetch_that_waits_again_counts_once_and_in_its_new_time() -> None:
    clock = Clock()
    ahead = Lookahead(64, clock)
    (fetch,) = started(ahead, 1)
    ahead.remove(fetch)
    clock.now += 0.9
    ahead.add(fetch)
    clock.now += 0.9  # the first time would be overdue
    ahead.drop_late_ones()
    assert ahead.expected == 1
    ahead.clear()
    ahead.remove(fetch)
    assert ahead.expected == 0


def test_one_slow_name_says_little_of_the_others() -> None:
    clock = Clock()
    ahead = Lookahead(64, clock)
    for _ in range(200):
        ahead.learn(0.02)
    ahead.learn(5.0)
    started(ahead, 1)
    assert ahead.late_at < clock.now + 0.1
