"""The picture of hidden tokens: its marks stand where the figures say, and the report, its curves and W&B have them."""

import json

import pytest

from pretrain.tracking import heterogeneity_picture as drawn
from pretrain.tracking.access import WandbAccess
from pretrain.tracking.charts import Scale
from pretrain.tracking.frames import frames
from pretrain.tracking.metrics import Tracker
from pretrain.tracking.pen import ORANGE, TEAL
from pretrain.tracking.report import write_report
from pretrain.tracking.settings import TrackingConfig
from tests.tracking.test_attention_picture import near
from tests.tracking.test_report import Page, write_run
from tests.tracking.test_wandb import rows


def look(step, entropy=(0.1, 0.5, 0.9), bare=0.3, norm=2.0):
    num = len(entropy)
    figures = {"entropy": list(entropy), "self_mass": [0.5] * num, "distance": [1.0] * num, "mass": [0.4] * num}
    return {
        "step": step,
        "heterogeneity": {
            **figures, "row": [0.7] * num, "excluded": [40 - 40 * block // max(1, num - 1) for block in range(num)],
            "bare": {"entropy": bare, "self_mass": 0.5, "distance": 1.0}, "tokens": {"seen": 25, "hidden": 40},
            "early": 1 - entropy[0], "late": 1 - entropy[-1], "token_norm": norm,
        },
    }  # fmt: skip


def pixel(picture, x, y):
    return picture.getpixel((round(x), round(y)))


def test_lines_rings_and_bars_stand_where_the_figures_say():
    looks = [look(0), look(60, entropy=(0.9, 0.2, 0.4), bare=0.6)]
    picture = drawn.heterogeneity_sheet(looks)
    x = drawn._over(0, 3)
    y = drawn._up(0, [0.9, 0.5, 0.1, 0.1, 0.8, 0.6, 0.7, 0.4])
    for colour, values, bare in ((ORANGE, (0.9, 0.5, 0.1), 0.7), (TEAL, (0.1, 0.8, 0.6), 0.4)):
        for block, value in enumerate(values):
            assert near(pixel(picture, x.at(block), y.at(value)), (*colour, 255)), (block, value)
        assert near(pixel(picture, x.at(0) - 8.5, y.at(bare)), (*colour, 255), 16)  # thin lines come out sharpened
    assert pixel(picture, x.at(0.5), y.at(0.2))[3] == 0
    bars, keys = Scale(-0.5, 2.5, *drawn._across(drawn._EXCLUDED)), drawn._up(drawn._EXCLUDED, [0, 40])
    heights = [
        [pixel(picture, bars.at(block), keys.at(count))[3] > 150 for count in (8, 18, 28, 38)] for block in (0, 1, 2)
    ]
    assert heights == [[True] * 4, [True, True, False, False], [False] * 4]


def test_the_norm_is_drawn_over_all_steps():
    picture = drawn.heterogeneity_sheet([look(step, norm=1 + step / 10) for step in range(0, 101, 10)])
    x, y = Scale(0, 100, *drawn._across(drawn._NORM)), drawn._up(drawn._NORM, [1.0, 11.0])
    assert near(pixel(picture, x.at(0), y.at(1)), (*ORANGE, 255)) and near(
        pixel(picture, x.at(100), y.at(11)), (*TEAL, 255)
    )
    assert pixel(picture, x.at(75), y.at(8.5))[3] > 100 and pixel(picture, x.at(75), y.at(6.4))[3] == 0


@pytest.mark.parametrize("num_blocks", [1, 2, 40])
def test_any_depth_is_drawn(num_blocks):
    picture = drawn.heterogeneity_sheet([look(7, entropy=(0.5,) * num_blocks)])
    x, y = drawn._over(0, num_blocks), drawn._up(0, [0.5, 0.7])
    for block in (0, num_blocks - 1):
        assert near(pixel(picture, x.at(block), y.at(0.5)), (*TEAL, 255))


def test_other_inspections_have_no_such_picture(tmp_path):
    assert drawn.heterogeneity_picture([{"step": 0, "matrix": [[1.0]]}], tmp_path / "a.png") is None
    assert not list(tmp_path.iterdir())


def test_frames_hold_first_and_last_and_are_denser_at_the_start():
    assert frames([1, 2, 3], 5) == [1, 2, 3]
    for count in (6, 7, 11, 1000):
        shown = frames(range(count), 5)
        assert len(set(shown)) == 5 and shown == sorted(shown) and (shown[0], shown[-1]) == (0, count - 1)
        assert shown[1] - shown[0] <= shown[-1] - shown[-2]


def test_the_report_has_the_picture_and_its_curves(tmp_path):
    run_dir = write_run(tmp_path / "run", panels=())
    assert "Hidden tokens" not in Page(write_report(run_dir).read_text()).text
    looks = [look(0), look(30, entropy=(0.2, 0.3, 0.6), norm=3.0), look(60, norm=4.0)]
    (run_dir / "inspections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in looks))
    html = write_report(run_dir).read_text()
    page = Page(html)
    assert page.open == [] and 'alt="figures of hidden tokens by block' in html
    assert "early blocks late blocks" in page.text and "Norm of the mask token" in page.text
    assert "[0,&quot;0.9&quot;]" in html.replace("\n", "") or ",0,&quot;0.9&quot;]" in html
    assert ",60,&quot;4&quot;]" in html


def test_wandb_gets_the_curves_at_the_steps_of_the_inspections(tmp_path):
    run = Tracker(tmp_path, {"name": "run"}, TrackingConfig(), access=WandbAccess(), warn=print)
    run.inspection(0, {key: value for key, value in look(0).items() if key != "step"})
    run.log([{"step": step, "loss": 1.0} for step in range(1, 31)])
    run.inspection(20, {key: value for key, value in look(20, norm=3.0).items() if key != "step"})
    run.panel(
        20, drawn.heterogeneity_picture([look(20)], tmp_path / "panels" / "heterogeneity-0000020.png"), "heterogeneity"
    )
    run.log([{"step": step, "loss": 1.0} for step in range(31, 41)])
    run.close()
    found = [row for row in rows(tmp_path) if "inspect/step" in row]
    assert [(row["inspect/step"], row["inspect/heterogeneity_early"], row["inspect/heterogeneity_token_norm"])
            for row in found] == [(0, 0.9, 2.0), (20, 0.9, 3.0)]  # fmt: skip
    (shown,) = (row for row in rows(tmp_path) if "heterogeneity/step" in row)
    assert shown["heterogeneity/step"] == 20 and shown["heterogeneity/blocks._type"] == "image-file"
