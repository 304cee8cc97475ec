"""Hosts that asked to be left alone, on a clock of the test's own."""

from __future__ import annotations

import random
from collections import deque

import pytest
from unit_support import Clock

from dlconsole.settings import FetchSettings, RetrySettings
from dlconsole.workers.fetch import parks as module
from dlconsole.workers.fetch.parks import Parks
from dlconsole.workers.fetch.turns import HostTurns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def parks(clock: Clock) -> Parks:
    return Parks(FetchSettings(park_s=10), RetrySettings(max_s=100, retry_after_s=600), clock)


def pass_pause(parks: Parks, clock: Clock, host: str = "a") -> None:
    clock.now += parks.left_s(host)
    assert not parks.is_parked(host)


def test_retry_after_is_kept_to_and_never_cut_short(parks: Parks, clock: Clock) -> None:
    assert not parks.is_parked("a")
    for_s = parks.refused("a", 30)
    assert 30 <= for_s <= 30 * 1.25
    assert parks.left_s("a") == pytest.approx(for_s)
    assert not parks.is_parked("b")
    clock.now += 29.9
    assert parks.is_parked("a")
    clock.now += for_s - 29.8
    assert not parks.is_parked("a")


def test_retry_after_has_a_cap(parks: Parks) -> None:
    assert 600 <= parks.refused("a", 10**9) <= 750


def test_without_retry_after_pauses_double_up_to_a_cap(parks: Parks, clock: Clock) -> None:
    lengths = []
    for _ in range(6):
        lengths.append(parks.refused("a", None))
        pass_pause(parks, clock)
    for length, least in zip(lengths, (10, 20, 40, 80, 100, 100), strict=True):
        assert least <= length <= least * 1.25


def test_refusals_of_what_was_already_under_way_are_one(parks: Parks, clock: Clock) -> None:
    first = parks.refused("a", None)
    assert [parks.refused("a", None) for _ in range(7)] == [0.0] * 7
    assert parks.refused("a", 5) == 0.0  # less than is left
    assert parks.left_s("a") == pytest.approx(first)
    assert parks.refused("a", 60) >= 60  # more is heeded
    pass_pause(parks, clock)
    assert not parks.is_given_up("a")


def test_good_answers_behind_a_pause_make_the_next_one_shorter(parks: Parks, clock: Clock) -> None:
    for _ in range(3):
        parks.refused("a", None)
        parks.answered("a")  # asked before the pause: that makes nothing shorter
        pass_pause(parks, clock)
    for _ in range(4):
        parks.answered("a")
    assert 40 <= parks.refused("a", None) <= 50  # not 80
    pass_pause(parks, clock)
    for _ in range(1000):
        parks.answered("a")
    assert 10 / 8 <= parks.refused("a", None) <= 12.5 / 8
    pass_pause(parks, clock)
    assert 20 <= parks.refused("a", None) <= 25  # refused again at once: as the second in a row


def test_what_is_learnt_of_others_parks_and_the_count_says_how_long_the_next_pause_is(
    parks: Parks, clock: Clock
) -> None:
    parks.learn("a", 40, 2)
    assert parks.left_s("a") == pytest.approx(40)
    parks.learn("a", 30, 2)
    assert parks.left_s("a") == pytest.approx(40)
    clock.now += 39.9
    parks.learn("a", 0.2, 2)  # the end of the same pause, by a clock that is a little off
    pass_pause(parks, clock)
    assert 40 <= parks.refused("a", None) <= 50


def test_who_learns_late_of_a_pause_neither_grows_nor_forgets_by_what_is_left(clock: Clock) -> None:
    first, late = (Parks(FetchSettings(park_s=10), RetrySettings(max_s=10_000), clock) for _ in range(2))
    for _ in range(7):
        first.refused("a", None)
        clock.now += first.left_s("a") - 12
        late.learn("a", 12, first._parks["a"].refusals)
        clock.now += 12.001
    assert 1280 <= late.refused("a", None) <= 1600  # as the eighth in a row
    pass_pause(late, clock)
    for parks in (first, late):
        parks.answered("a")
        parks.learn("a", 30)
        pass_pause(parks, clock)
        assert 1000 <= parks.refused("a", None) <= 3200
        pass_pause(parks, clock)
    late.answered("a")
    late.learn("b", 12)
    pass_pause(late, clock, "b")
    assert 10 <= late.refused("b", None) <= 12.5


@pytest.mark.parametrize("rounded_up_s", [0.0, 0.0005, 0.01])
def test_a_pause_of_its_own_that_it_learns_of_does_not_grow(
    parks: Parks, clock: Clock, rounded_up_s: float
) -> None:
    lengths = []
    for refusals in range(1, 5):
        lengths.append(parks.refused("a", None))
        clock.now += 0.01
        parks.learn("a", parks.left_s("a") + rounded_up_s, refusals)
        pass_pause(parks, clock)
    for length, least in zip(lengths, (10, 20, 40, 80), strict=True):
        assert least <= length <= least * 1.25


def test_pauses_of_one_length_end_at_different_times(parks: Parks) -> None:
    pauses = [parks.refused(f"h{i}", 100) for i in range(200)]
    assert 100 <= min(pauses) < 105
    assert 120 < max(pauses) <= 125
    assert len({round(pause, 6) for pause in pauses}) > 100


def test_with_no_wait_allowed_for_retry_after_the_pauses_are_our_own(clock: Clock) -> None:
    parks = Parks(FetchSettings(park_s=10), RetrySettings(max_s=100, retry_after_s=0), clock)
    for least in (10, 20, 40):
        assert least <= parks.refused("a", 3600) <= least * 1.25
        assert parks.refused("a", 3600) == 0.0
        pass_pause(parks, clock)


def images_in(hours: int, refused_share: float) -> tuple[int, float]:
    """How many images one process gets in its last hour from a site that refuses this share of all requests
    at random and takes 0.1 s for each, and the longest pause; without refusals it would be 288,000.
    """
    random.seed(3)
    clock = Clock()
    end = clock.now + hours * 3600
    parks = Parks(FetchSettings(park_s=10), RetrySettings(max_s=3600), clock)
    turns: HostTurns[int] = HostTurns(8, 0.0, clock)
    stored, longest_s = 0, 0.0
    running: deque[float] = deque()
    while clock.now < end:
        if not parks.is_parked("a"):
            while turns.take("a", 0):
                running.append(clock.now + 0.1)
            turns.drop("a")
        if not running:
            pass_pause(parks, clock)
            continue
        clock.now = max(clock.now, running.popleft())
        turns.done("a")
        was_parked = parks.is_parked("a")
        if random.random() < refused_share:
            longest_s = max(longest_s, parks.refused("a", None))
            if not was_parked:
                turns.refused("a")
            continue
        stored += clock.now > end - 3600
        parks.answered("a")
        if not was_parked:
            turns.answered("a")
    return stored, longest_s


@pytest.mark.parametrize(
    ("refused_share", "least", "longest_s"),
    [(0.002, 150_000, 30), (0.01, 60_000, 60), (0.05, 10_000, 200)],
)  # reached: 204,000, 90,000 and 22,000
def test_a_site_that_refuses_rarely_is_slowed_down_and_not_abandoned(
    refused_share: float, least: int, longest_s: float
) -> None:
    images, pause_s = images_in(1, refused_share)
    assert images >= least
    assert pause_s <= longest_s


@pytest.mark.parametrize("refused_share", [0.5, 0.9, 1])
def test_a_site_that_goes_on_refusing_is_left_alone_for_ever_longer(refused_share: float) -> None:
    images, pause_s = images_in(12, refused_share)
    assert images <= 20
    assert pause_s >= 3600


def test_what_is_learnt_has_the_cap_of_our_own_settings(parks: Parks) -> None:
    parks.learn("a", 10**12)
    assert parks.left_s("a") <= 600 * 1.25


def test_a_host_that_does_nothing_but_refuse_is_given_up(parks: Parks, clock: Clock) -> None:
    for _ in range(5):
        parks.refused("a", None)
        assert not parks.is_given_up("a")
        pass_pause(parks, clock)
    parks.answered("a")
    for _ in range(5):
        parks.refused("a", None)
        assert not parks.is_given_up("a")
        pass_pause(parks, clock)
    parks.refused("a", None)
    assert parks.is_given_up("a")


def test_others_refusals_give_nobody_up(parks: Parks, clock: Clock) -> None:
    for _ in range(20):
        parks.learn("a", 10)
        parks.refused("a", 20)  # ours, inside of their pause
        pass_pause(parks, clock)
    assert not parks.is_given_up("a")


def test_the_refusals_of_a_fleet_count_as_ours(parks: Parks, clock: Clock) -> None:
    parks.learn("a", 0, 3)
    assert not parks.is_parked("a")
    assert 80 <= parks.refused("a", None) <= 100  # as the fourth in a row
    assert not parks.is_given_up("a")
    parks.learn("a", 20, 6)
    assert parks.is_given_up("a")
    parks.learn("a", 20, 1)  # somebody had another answer
    assert not parks.is_given_up("a")
    pass_pause(parks, clock)
    parks.learn("b", 0, 1000)
    assert 100 <= parks.refused("b", None) <= 125
    parks.learn("c", 0, 5)
    assert 30 <= parks.refused("c", 30) <= 30 * 1.25  # Retry-After is kept to


def test_an_answer_is_told_once_where_the_host_had_refused(parks: Parks, clock: Clock) -> None:
    assert not parks.answered("a")
    parks.refused("a", None)
    assert parks.answered("a")
    assert not parks.answered("a")
    parks.learn("b", 0, 4)
    assert parks.answered("b")
    assert not parks.answered("b")
    assert 10 <= parks.refused("b", None) <= 12.5


def test_tasks_come_back_after_the_pause_and_not_all_at_once(parks: Parks) -> None:
    parks.refused("a", 10)
    left_s = parks.left_s("a")
    returns = [parks.return_in_s("a") for _ in range(1000)]
    assert min(returns) >= left_s
    assert left_s + 2 <= max(returns) <= left_s + 12.5
    in_one_second = max(sum(at <= r < at + 1 for r in returns) for at in returns)
    assert in_one_second < 500
    assert 0 <= parks.return_in_s("unknown") < 1


def test_where_both_are_switched_off_nothing_is_parked(clock: Clock) -> None:
    parks = Parks(FetchSettings(park_s=0), RetrySettings(retry_after_s=0), clock)
    assert parks.refused("a", None) == parks.refused("a", 60) == 0
    assert not parks.is_parked("a")


def test_memory_is_bounded(parks: Parks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KNOWN", 100)
    for i in range(1000):
        parks.refused(f"h{i}", None)
    assert len(parks._parks) == 100
    for i in range(1000):
        parks.learn(f"l{i}", 0, 1)
    assert len(parks._parks) == 100
    parks.refused("h999", None)
    assert parks.is_parked("h999")
