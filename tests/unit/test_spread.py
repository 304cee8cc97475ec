"""Neighbours from different hosts, in an order that is always the same."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from dlconsole.services.items import Tally, TaskWriter
from dlconsole.services.spread import spread
from dlconsole.settings import Settings


def items_of(hosts: list[str]) -> list[bytes]:
    writer = TaskWriter(Settings(dataset="ds"))
    return writer.tasks([f"http://{host}/{i}".encode() for i, host in enumerate(hosts)], Tally())


def spread_hosts(hosts: list[str]) -> list[str]:
    order = spread(items_of(hosts))
    assert sorted(order) == list(range(len(hosts)))
    return [hosts[i] for i in order]


@pytest.mark.parametrize("seed", range(40))
def test_neighbours_are_of_one_host_only_where_that_must_be(seed: int) -> None:
    chance = random.Random(seed)
    names = [f"h{i}.example" for i in range(chance.randint(1, 12))]
    weights = [chance.random() ** 4 for _ in names]
    hosts = sorted(chance.choices(names, weights, k=chance.randint(1, 300)))
    most = max(Counter(hosts).values())
    same = sum(a == b for a, b in pairwise(spread_hosts(hosts)))
    assert same == max(0, 2 * most - len(hosts) - 1)


def test_a_large_host_is_spread_over_the_whole_window() -> None:
    """Not used up first, nor left for the end, where thousands of hosts have one task each."""
    hosts = spread_hosts(["large"] * 500 + [f"small{i}" for i in range(4500)])
    places = [i for i, host in enumerate(hosts) if host == "large"]
    gaps = [b - a for a, b in pairwise([0, *places, len(hosts)])]
    assert min(gaps[1:-1]) >= 5 and max(gaps) <= 15


def test_a_small_host_keeps_its_distance() -> None:
    hosts = spread_hosts([f"h{i // 10}" for i in range(1000)])
    last: dict[str, int] = {}
    nearest = len(hosts)
    for i, host in enumerate(hosts):
        nearest = min(nearest, i - last.get(host, -1000))
        last[host] = i
    assert nearest >= 50


@pytest.mark.parametrize(
    "url",
    [
        "HTTP://One.Example/x",
        "https://one.example:8080/x",
        "http://user:word@one.example/x",
        "http://one.example?x=http://two.example/",
        "http://one.example#x",
        'http://one.example/"quoted"',
    ],
)
def test_a_host_is_known_however_its_url_is_written(url: str) -> None:
    items = TaskWriter(Settings(dataset="ds")).tasks(
        [b"http://one.example/", url.encode(), b"http://two.example/"], Tally()
    )
    assert spread(items)[1] == 2


def test_what_has_no_host_and_no_task_at_all_are_ordered_as_well() -> None:
    assert spread(TaskWriter(Settings(dataset="ds")).tasks([b"UNLIKELY", b"x"], Tally())) == [0, 1]
    assert spread([]) == []
