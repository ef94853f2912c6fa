"""Ticks, thinning and smoothing: round numbers, kept extremes, no lag."""

import pytest

from pretrain.tracking.charts import Series, chart, short, smooth, thin, ticks


def test_thinning_keeps_the_ends_and_the_extremes():
    points = [(x, 0.0) for x in range(10_000)]
    points[3_333], points[7_777] = (3_333, 9.0), (7_777, -9.0)
    kept = thin(points)
    assert len(kept) <= 410
    assert {points[0], points[-1], points[3_333], points[7_777]} <= set(kept)
    assert kept == sorted(kept)


def test_a_straight_line_stays_straight_when_smoothed():
    points = [(x, 2.0 * x) for x in range(1000)]
    assert all(y == pytest.approx(2 * x) for x, y in smooth(points)[30:-30])
    assert smooth(points, sharp_start=True)[0] == points[0]


def test_smoothing_averages_noise_away():
    noisy = [(x, 1.0 + (-1) ** x) for x in range(1000)]
    assert all(0.9 < y < 1.1 for _, y in smooth(noisy)[20:])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 6000, [0, 2000, 4000, 6000]),
        (3, 3.05, [3, 3.01, 3.02, 3.03, 3.04, 3.05]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1.5k"),
        (1834, "1834"),
        (20000, "20k"),
        (3e6, "3M"),
        (1e-4, "1e-4"),
        (2.5e-5, "2.5e-5"),
    ],
)
def test_tick_labels_are_short(value, text):
    assert short(value) == text


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(1, 5.0), (2, 5.0)], [(0, 1e-9), (1, 1e9)]])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_of_odd_data_is_drawn_without_nan(points, log):
    svg = chart("Odd", [Series("odd", points)], log_y=log, log_x=log)
    assert "nan" not in svg and "inf" not in svg


def test_a_chart_of_nothing_is_nothing():
    assert chart("Empty", [Series("empty", [])]) == ""
