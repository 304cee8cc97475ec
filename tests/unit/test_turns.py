"""Whose turn it is, on a clock of the test's own."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from unit_support import Clock

from dlconsole.workers.fetch import turns as module
from dlconsole.workers.fetch.turns import HostTurns


def started(turns: HostTurns[str]) -> list[str]:
    """Those whose turn it is; each asks at once. Their names begin with their host's."""
    found = []
    while (task := turns.next()) is not None:
        turns.began(task[0])
        found.append(task)
    return found


def start(turns: HostTurns[str], host: str, task: str) -> bool:
    """Whether it is the turn of `task`, which asks at once."""
    is_its_turn = turns.take(host, task)
    if is_its_turn:
        turns.began(host)
    return is_its_turn


def test_a_host_at_its_limit_waits_and_others_go_on() -> None:
    turns: HostTurns[str] = HostTurns(2)
    assert [turns.take("a", f"a{i}") for i in range(4)] == [True, True, False, False]
    assert turns.take("b", "b0")
    assert turns.waiting == 2
    assert started(turns) == []
    turns.done("b")
    assert started(turns) == []
    turns.done("a")
    assert started(turns) == ["a2"]
    assert started(turns) == []


def test_a_new_task_does_not_overtake_those_that_wait() -> None:
    turns: HostTurns[str] = HostTurns(1)
    turns.take("a", "first")
    turns.take("a", "second")
    turns.done("a")
    assert not turns.take("a", "third")
    assert started(turns) == ["second"]
    turns.done("a")
    assert started(turns) == ["third"]


def test_hosts_whose_fetches_end_in_turn_start_in_turn() -> None:
    turns: HostTurns[str] = HostTurns(2)
    for host in "abc":
        for i in range(4):
            turns.take(host, f"{host}{i}")
    for host in "abcabc":
        turns.done(host)
    assert started(turns) == ["a2", "b2", "c2", "a3", "b3", "c3"]


@pytest.mark.parametrize("hosts", [1, 10, 5000])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_every_task_runs_once_never_more_than_the_limit_at_once(hosts: int, is_sorted: bool) -> None:
    rng = random.Random(5)
    turns: HostTurns[tuple[str, int]] = HostTurns(3)
    tasks = [(f"h{rng.randrange(hosts)}", i) for i in range(6000)]
    if is_sorted:
        tasks.sort()
    ended: list[tuple[str, int]] = []
    running: list[tuple[str, int]] = []
    now: Counter[str] = Counter()
    queue = iter(tasks)
    more = True
    while more or running or turns.waiting:
        while len(running) < 20 and (task := turns.next()) is not None:
            running.append(task)
            now[task[0]] += 1
        while more and len(running) < 20 and turns.waiting < 50:
            task = next(queue, None)
            more = task is not None
            if task is not None and turns.take(task[0], task):
                running.append(task)
                now[task[0]] += 1
        assert max(now.values()) <= 3
        assert running, "nothing runs although something waits"
        task = running.pop(rng.randrange(len(running)))
        now[task[0]] -= 1
        turns.done(task[0])
        ended.append(task)
    assert sorted(ended) == sorted(tasks)
    assert turns._running == {} and turns._queues == {}
    turns.next()
    assert not turns._line


def test_a_rate_spaces_the_starts_of_one_host_only() -> None:
    clock = Clock()
    turns: HostTurns[str] = HostTurns(8, 2.0, clock)
    assert turns.due_in_s() is None
    assert start(turns, "a", "a0")
    assert not turns.take("a", "a1")
    assert not turns.take("a", "a2")
    assert start(turns, "b", "b0")
    assert turns.due_in_s() == 0.5
    clock.now += 0.4
    assert started(turns) == []
    clock.now += 0.1
    assert started(turns) == ["a1"]
    assert started(turns) == []
    clock.now += 0.5
    assert started(turns) == ["a2"]
    assert turns.due_in_s() is None
    clock.now += 0.5
    assert turns.take("b", "b1")


def test_a_rate_is_that_of_requests_however_long_a_turn_waits_for_its_own() -> None:
    clock = Clock()
    turns: HostTurns[str] = HostTurns(8, 2.0, clock)
    assert [turns.take("a", f"a{i}") for i in range(4)] == [True, False, False, False]
    clock.now += 60  # a name that takes long
    assert turns.due_in_s() is None and started(turns) == []
    turns.began("a")
    assert turns.due_in_s() == 0.5 and started(turns) == []
    clock.now += 0.5
    assert turns.next() == "a1"
    clock.now += 60
    assert turns.next() is None
    turns.done("a")  # the first one's end is not the second one's request
    assert turns.next() is None
    turns.done("a", has_begun=False)  # a name that was not found
    assert started(turns) == ["a2"]
    clock.now += 0.5
    assert turns.next() == "a3"
    turns.clear()
    assert start(turns, "a", "a4") and not turns.take("a", "a5")


def test_those_that_began_at_a_host_and_those_led_there_take_turns_each_in_its_order() -> None:
    turns: HostTurns[str] = HostTurns(1)
    turns.take("a", "a0")
    assert not any(turns.take("a", f"a-own{i}") for i in range(4))
    assert not any(turns.take("a", f"a-led{i}", led_here=True) for i in range(2))
    assert turns.waiting == 6
    order = []
    for _ in range(6):
        turns.done("a")
        assert not turns.take("a", "a-late", led_here=True)  # however many come
        order += started(turns)
    assert order[:4] == ["a-led0", "a-own0", "a-led1", "a-own1"]
    assert order[5] == "a-own2"
    assert turns.drop_where(lambda task: "own" in task) == ["a-own3"]
    assert set(turns.peek()) == {"a-late"} == set(turns.drop("a"))
    assert turns.waiting == 0


def test_a_rate_and_a_limit_hold_together() -> None:
    clock = Clock()
    turns: HostTurns[str] = HostTurns(1, 1.0, clock)
    start(turns, "a", "a0")
    turns.take("a", "a1")
    clock.now += 5
    assert started(turns) == []  # one still runs
    turns.done("a")
    assert started(turns) == ["a1"]
    turns.take("a", "a2")
    turns.done("a")
    assert started(turns) == []  # none runs, but it is too early
    clock.now += 1
    assert started(turns) == ["a2"]


def test_over_a_long_time_a_rate_is_met_and_not_passed() -> None:
    clock = Clock()
    turns: HostTurns[str] = HostTurns(4, 10.0, clock)
    starts = 0
    for i in range(40):
        starts += start(turns, "a", f"a{i}")
    for _ in range(200):  # 2 s in steps of 10 ms
        clock.now += 0.01
        for _task in started(turns):
            starts += 1
            turns.done("a")
    assert 19 <= starts <= 21


def test_idle_hosts_take_no_memory() -> None:
    clock = Clock()
    turns: HostTurns[str] = HostTurns(2, 5.0, clock)
    for i in range(1000):
        start(turns, f"h{i}", "x")
        turns.done(f"h{i}")
        clock.now += 0.01
    assert len(turns._paced) <= 21 and len(turns._due) <= 21  # the starts of the last 200 ms
    clock.now += 1
    turns.next()
    assert not (turns._paced or turns._due or turns._running or turns._queues or turns._line)


def test_what_waits_can_be_taken_out_for_one_host_or_for_all() -> None:
    turns: HostTurns[str] = HostTurns(1)
    for host in "ab":
        for i in range(3):
            turns.take(host, f"{host}{i}")
    assert sorted(turns.peek()) == ["a1", "a2", "b1", "b2"]
    assert turns.drop("a") == ["a1", "a2"]
    assert turns.drop("a") == turns.drop("unknown") == []
    assert turns.waiting == 2
    turns.done("a")
    assert started(turns) == []
    assert turns.take("a", "a3")
    assert turns.drop_where(lambda task: task == "b1") == ["b1"]
    assert turns.waiting == 1 and turns.peek() == ["b2"]
    assert turns.drop_where(lambda _: True) == ["b2"]
    assert turns.waiting == 0 and not turns._queues
    turns.done("b")
    assert turns.take("b", "b3")


def test_a_host_that_was_dropped_while_in_line_keeps_its_limit() -> None:
    turns: HostTurns[str] = HostTurns(1)
    turns.take("a", "a0")
    turns.take("a", "a1")
    turns.done("a")
    turns.drop("a")
    assert turns.take("a", "a2")
    assert not turns.take("a", "a3")
    assert started(turns) == []


def at_once(turns: HostTurns[str], host: str = "a") -> int:
    """How many of a host that has none running may run at once."""
    count = 0
    while turns.take(host, "x"):
        count += 1
    turns.drop(host)
    for _ in range(count):
        turns.done(host)
    return count


def test_behind_a_pause_one_goes_ahead_and_then_half_as_many_as_before() -> None:
    turns: HostTurns[str] = HostTurns(8)
    turns.refused("a")
    assert at_once(turns) == 1
    assert at_once(turns, "b") == 8
    turns.answered("a")
    assert at_once(turns) == 4
    turns.pause("a")  # others were refused
    assert at_once(turns) == 1
    turns.answered("a")
    assert at_once(turns) == 4
    for left in (2, 1, 1):
        turns.refused("a")
        turns.answered("a")
        assert at_once(turns) == left


def test_good_answers_let_the_limit_grow_by_one_at_a_time_up_to_what_is_set() -> None:
    turns: HostTurns[str] = HostTurns(4)
    for _ in range(2):
        turns.refused("a")
    answers, needed = 0, []
    for most in (2, 3, 4):
        while at_once(turns) < most:
            turns.answered("a")
            answers += 1
        assert at_once(turns) == most
        needed.append(answers)
    assert needed == pytest.approx([8, 24, 48], abs=1)
    for _ in range(100):
        turns.answered("a")
    assert at_once(turns) == 4
    assert not turns._slowed


def test_a_host_that_fails_behind_its_pause_without_refusing_holds_up_nobody_longer() -> None:
    turns: HostTurns[str] = HostTurns(8)
    turns.refused("a")
    for _ in range(100):
        turns.failed("a")
    assert at_once(turns) == 4


def test_what_waits_starts_as_soon_as_its_host_may_have_more() -> None:
    turns: HostTurns[str] = HostTurns(8)
    turns.refused("a")
    assert [turns.take("a", f"a{i}") for i in range(8)] == [True] + [False] * 7
    assert started(turns) == []
    turns.done("a")
    turns.answered("a")
    assert started(turns) == ["a1", "a2", "a3", "a4"]
    assert turns.waiting == 3


def test_hosts_that_refused_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SLOWED", 10)
    turns: HostTurns[str] = HostTurns(2)
    for i in range(100):
        turns.refused(f"h{i}")
    assert len(turns._slowed) == 10
    assert at_once(turns, "h0") == 2
    assert at_once(turns, "h99") == 1


def test_turns_beside_others_keep_what_those_learnt_of_a_host() -> None:
    turns: HostTurns[str] = HostTurns(4)
    beside: HostTurns[str] = HostTurns(4, beside=turns)
    turns.refused("a")
    assert [beside.take("a", f"a{i}") for i in range(4)] == [True, False, False, False]
    beside.done("a")
    assert started(beside) == ["a1"]
    turns.answered("a")
    beside.done("a")
    assert started(beside) == ["a2", "a3"]


def test_an_answer_lets_what_waits_beside_start_at_once() -> None:
    turns: HostTurns[str] = HostTurns(4)
    beside: HostTurns[str] = HostTurns(4, beside=turns)
    turns.refused("a")
    assert [beside.take("a", f"a{i}") for i in range(4)] == [True, False, False, False]
    assert started(beside) == []
    turns.answered("a")
    assert started(beside) == ["a1"]
    turns.pause("a")
    beside.done("a")
    assert started(beside) == []
    turns.failed("a")
    assert started(beside) == ["a2"]


def test_cleared_it_begins_anew() -> None:
    turns: HostTurns[str] = HostTurns(1)
    turns.take("a", "a0")
    turns.take("a", "a1")
    turns.clear()
    assert turns.waiting == 0
    assert turns.take("a", "a2")
