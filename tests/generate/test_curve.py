from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.errors import ConfigError, NumericalError
from pretrain.generate.curve import COLOURS, curve_sheet, draw_curve

POINTS = {"base": [(1, 60.0), (2, 41.0), (4, 30.0), (8, 26.0)], "local": [(8.5, 24.0), (1.5, 45.0), (5, 25.5)]}


def _places(sheet: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    """Rows and columns of the pixels of a colour, left of the names."""
    pixels = np.asarray(sheet)
    found = np.argwhere((np.abs(pixels[..., :3].astype(int) - colour).max(-1) < 3) & (pixels[..., 3] > 250))
    return found[found[:, 1] < 880]


def test_each_line_has_its_colour_and_falls_as_its_values_do(tmp_path: Path) -> None:
    path = draw_curve(POINTS, tmp_path / "new" / "curve.png", "steps", "FID-own", "Quality against compute")
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]
    with Image.open(path) as sheet:
        for colour in COLOURS[:2]:
            rows, columns = _places(sheet, colour).T
            assert rows[columns < columns.min() + 8].mean() < rows[columns > columns.max() - 8].mean() - 50
        assert len(_places(sheet, COLOURS[2])) == 0


def test_points_may_come_in_any_order() -> None:
    turned = {name: line[::-1] for name, line in POINTS.items()}
    one, two = (curve_sheet(lines, "steps", "FID", "") for lines in (POINTS, turned))
    assert np.array_equal(np.asarray(one), np.asarray(two))


def test_doublings_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    sheet = curve_sheet({"a": [(2.0**power, 10.0) for power in range(5)]}, "steps", "FID", "", log_x=True)
    columns = _places(sheet, COLOURS[0])[:, 1]
    thick = np.flatnonzero(np.bincount(columns) > 10)  # dots are thicker than the line
    centres = [group.mean() for group in np.split(thick, np.flatnonzero(np.diff(thick) > 20) + 1)]
    assert len(centres) == 5
    assert np.diff(centres) == pytest.approx(np.diff(centres).mean(), abs=3)


def test_one_point_and_equal_points_are_drawn_too() -> None:
    for line in ([(4.0, 3.0)], [(1.0, 0.0), (2.0, 0.0)]):
        assert len(_places(curve_sheet({"a": line}, "x", "y", "t"), COLOURS[0])) > 50


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for series, log, says in (
        ({}, False, "no points of anything"),
        ({"base": []}, False, "no points of base"),
        ({str(number): [(1.0, 1.0)] for number in range(13)}, False, "13 lines cannot be told apart"),
        ({"base": [(0.0, 1.0)]}, True, "x <= 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            draw_curve(series, tmp_path / "curve.png", "x", "y", "t", log_x=log)
    with pytest.raises(NumericalError, match="base is not finite"):
        draw_curve({"base": [(1.0, float("nan"))]}, tmp_path / "curve.png", "x", "y", "t")
    assert list(tmp_path.iterdir()) == []
