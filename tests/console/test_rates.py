"""From counters to speeds."""

from __future__ import annotations

import pytest

from dlconsole.model import HistoryPoint
from dlconsole.widgets.rates import round_up, stored_rates, window_for


def points(*pairs: tuple[float, int]) -> list[HistoryPoint]:
    return [HistoryPoint(int(s * 1000), stored, 0, 0) for s, stored in pairs]


def test_a_steady_counter_is_a_steady_rate_at_any_resolution() -> None:
    steady = points(*((s, 7 * s) for s in range(0, 601, 10)))
    for columns in (3, 37, 100, 600):
        rates = stored_rates(steady, 600_000, 600_000, columns)
        assert [r for r in rates if r is not None] == pytest.approx([7.0] * sum(r is not None for r in rates))
        assert sum(r is not None for r in rates) >= columns - 1


def test_all_that_was_stored_is_in_the_columns() -> None:
    uneven = points((0, 0), (13, 40), (55, 41), (60, 400))
    rates = stored_rates(uneven, 59_999, 60_000, 6)
    assert sum(10 * (rate or 0) for rate in rates) == pytest.approx(400)


def test_a_counter_that_was_reset_leaves_a_gap_and_no_negative_rate() -> None:
    rates = stored_rates(points((0, 500), (10, 600), (20, 5), (30, 105)), 29_999, 30_000, 3)
    assert rates == [pytest.approx(10), None, pytest.approx(10)]


def test_what_is_before_the_window_is_left_out() -> None:
    assert stored_rates(points((0, 0), (10, 100)), 999_999, 60_000, 6) == [None] * 6


def test_no_points_no_rates() -> None:
    assert stored_rates([], 1000, 60_000, 4) == [None] * 4
    assert stored_rates(points((0, 5)), 1000, 60_000, 4) == [None] * 4


def test_points_at_one_moment_or_out_of_order_do_no_harm() -> None:
    rates = stored_rates(points((10, 0), (10, 50), (5, 60), (20, 100)), 19_999, 20_000, 2)
    assert all(rate is None or rate >= 0 for rate in rates)


def test_columns_move_by_whole_columns_only() -> None:
    past = points(*((s, s * s) for s in range(0, 601, 10)))
    one = stored_rates(past, 600_100, 60_000, 6)
    assert stored_rates(past, 605_000, 60_000, 6) == one
    assert stored_rates(past, 610_000, 60_000, 6)[:-1] == one[1:]


def test_the_window_is_the_shortest_that_holds_the_history() -> None:
    assert window_for([], 0).minutes == 1
    assert window_for(points((0, 0)), 61_000).minutes == 2
    assert window_for(points((0, 0)), 5 * 3_600_000).minutes == 360
    assert window_for(points((0, 0)), 90 * 3_600_000).minutes == 1440


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (1, 1), (7, 8), (101, 120), (1200, 1200), (9_999, 10_000)]
)
def test_the_axis_ends_at_a_round_value(value: float, top: float) -> None:
    assert round_up(value) == pytest.approx(top)
