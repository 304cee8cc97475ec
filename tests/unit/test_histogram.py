"""Durations in a few dozen counts."""

from __future__ import annotations

import random

import pytest

from dlconsole.histogram import Histogram


def of(*durations_s: float) -> Histogram:
    histogram = Histogram()
    for duration_s in durations_s:
        histogram.add(duration_s)
    return histogram


def test_percentiles_are_close_to_the_true_ones() -> None:
    chance = random.Random(5)
    durations = sorted(chance.lognormvariate(-3, 1.5) for _ in range(20_000))
    histogram = of(*durations)
    for percent in (1, 25, 50, 95, 99):
        assert histogram.percentile_s(percent) == pytest.approx(durations[200 * percent - 1], rel=0.11)


def test_an_empty_one_has_no_percentile() -> None:
    assert Histogram().percentile_s(50) is None
    assert Histogram().total == 0


def test_many_add_up_to_one_of_all() -> None:
    merged = of(0.01, 0.02).merge([of(0.5), Histogram(), of(0.5, 3.0)])
    assert merged.counts == of(0.01, 0.02, 0.5, 0.5, 3.0).counts
    assert merged.total == 5


@pytest.mark.parametrize("duration_s", [-1.0, 0.0, 1e-9, 1e-4, 1e9, float("inf")])
def test_durations_beyond_its_ends_are_in_the_last_buckets(duration_s: float) -> None:
    assert of(duration_s).total == 1
    assert of(duration_s).percentile_s(50) is not None


def test_what_others_sent_is_read_with_care() -> None:
    histogram = Histogram({"3": 2, "x": 1, "-1": 5, "1000": 9, "4": -2, "²": 1})
    assert histogram.counts == {"3": 2}
    assert Histogram(of(0.1, 0.2).counts).counts == of(0.1, 0.2).counts
