"""The picture of a learned alignment: squares and bars say what the shares are."""

import pytest

from pretrain.tracking import alignment_picture as drawn
from pretrain.tracking.pen import ORANGE, TEAL
from tests.tracking.test_attention_picture import near

LEVELS = [1, 2]
FIRST = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
LAST = [[1.0, 0.0, 0.0], [0.25, 0.5, -0.25], [0.0, -0.5, 0.5]]


def record(step, rows):
    return {"step": step, "contributions": rows, "levels": LEVELS}


def place(frame, layer, line):
    """The middle of a layer's square, frames and lines counted from the left and the top."""
    cell = drawn._FRAME_PX // 3
    left = drawn._LEFT + frame * (3 * cell + drawn._GAP)
    return round(left + (layer + 0.5) * cell), round(drawn._TOP + (line + 0.5) * cell)


def test_a_square_has_the_colour_of_its_share_and_the_highest_level_is_on_top():
    film = drawn.alignment_film([record(0, FIRST), record(9, LAST)])
    assert near(film.getpixel(place(0, 2, 0)), (*TEAL, 255)) and near(film.getpixel(place(0, 1, 1)), (*TEAL, 255))
    takes, gives = film.getpixel(place(1, 1, 0)), film.getpixel(place(1, 2, 0))
    assert near(takes, (*ORANGE, takes[3])) and near(gives, (*TEAL, gives[3])) and abs(takes[3] - gives[3]) < 3
    small, nothing = film.getpixel(place(1, 0, 1))[3], film.getpixel(place(1, 0, 0))[3]
    assert nothing < small < gives[3] < 255


def test_bars_are_as_high_as_what_a_layer_gives_to_the_levels_that_count():
    film = drawn.alignment_film([record(0, FIRST), record(9, LAST)])
    ground = drawn._TOP + 2 * (drawn._FRAME_PX // 3) + drawn._BARS_GAP + drawn._BARS_PX
    for frame, heights in ((0, (0, 1, 1)), (1, (0.25, 1, 0.75))):
        for layer, height in enumerate(heights):
            x, _ = place(frame, layer, 0)
            inked = [film.getpixel((x, round(ground - up * drawn._BARS_PX)))[3] > 100 for up in (0.1, 0.5, 0.9)]
            assert inked == [height > up for up in (0.1, 0.5, 0.9)], (frame, layer)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_words_above_few_frames_are_not_cut_off(count):
    film = drawn.alignment_film([record(step, FIRST) for step in range(count)])
    heads = film.crop((0, 0, film.width, drawn._TOP - 44))
    left, _, right, _ = heads.getbbox()
    assert abs(right - left - drawn.length(drawn._TITLE, drawn._LARGE)) < 8 and right < film.width - 8


@pytest.mark.parametrize(("levels", "layers"), [(24, 12), (5, 24)])
def test_any_pair_of_depths_is_drawn(levels, layers):
    rows = [[1 / layers] * layers] * levels
    film = drawn.alignment_film([{"step": 0, "contributions": rows, "levels": list(range(levels))}])
    assert min(film.size) > 300


def test_other_inspections_have_no_such_picture(tmp_path):
    assert drawn.alignment_picture([{"step": 0, "heterogeneity": {}}], tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())
