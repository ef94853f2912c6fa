"""The picture of attention-map ranks: its marks stand where the figures say, and the report has it."""

import base64
import json
import re

import pytest
from PIL import Image

from pretrain.tracking.attention_picture import (
    _BOTTOM,
    _LEFT,
    _MASK,
    _RIGHT,
    _SIZE,
    _TOP,
    _TRAINED,
    attention_picture,
)
from pretrain.tracking.pen import INK
from pretrain.tracking.report import write_report
from tests.tracking.test_report import Page, write_run


def result(ranks, mask_rank=23):
    block = {"mask_rank": mask_rank, "row_mass": 0.5, "row_mass_least": 0.1, "mask_row_mass": 0.508}
    return {
        "images": 30, "length": 65, "share": 0.8,
        "baselines": {"identity": 52, "uniform lower triangle": 23, "uniform": 1},
        "blocks": [{**block, "rank": heads} for heads in ranks],
        "token_variance": 0.651, "token_similarity": 0.457, "effective_rank": 35.3,
    }  # fmt: skip


def pixel(picture, block, num_blocks, rank, aside=0.0):
    x = _LEFT + (block + 0.5 + aside) / num_blocks * (_SIZE[0] - _LEFT - _RIGHT)
    y = _SIZE[1] - _BOTTOM - rank / 65 * (_SIZE[1] - _BOTTOM - _TOP)
    return picture.getpixel((round(x), round(y)))


def near(colour, other, most=8):
    return all(abs(a - b) <= most for a, b in zip(colour, other, strict=True))


def test_marks_stand_where_the_figures_say(tmp_path):
    path = attention_picture({"step 9": result([[30.0, 50.0], [10.0, 10.0]])}, tmp_path / "a.png")
    with Image.open(path) as picture:
        assert near(pixel(picture, 0, 2, 40), _TRAINED) and near(pixel(picture, 1, 2, 10), _TRAINED)
        for block in (0, 1):
            assert near(pixel(picture, block, 2, 23, aside=-0.2), _MASK)
        for rank in (1, 23, 52):
            assert pixel(picture, 0, 2, rank, aside=-0.495)[3] > 200, rank
        assert pixel(picture, 0, 2, 47)[3] and not pixel(picture, 0, 2, 27)[3]  # from the lowest head to the highest
        assert pixel(picture, 0, 2, 5)[3] == 0


@pytest.mark.parametrize("num_blocks", [1, 12, 40])
def test_any_depth_and_a_second_encoder_are_drawn(tmp_path, num_blocks):
    results = {"step 9": result([[20.0]] * num_blocks), "untrained": result([[60.0]] * num_blocks)}
    with Image.open(attention_picture(results, tmp_path / "a.png")) as picture:
        for block in (0, num_blocks - 1):
            assert near(pixel(picture, block, num_blocks, 60), INK)
        assert near(pixel(picture, num_blocks - 1, num_blocks, 20), _TRAINED)


def test_the_report_shows_it_where_it_is(tmp_path):
    run_dir = write_run(tmp_path / "first", panels=())
    assert "Attention" not in Page(write_report(run_dir).read_text()).text
    results = {"step 60 (ema)": result([[20.0], [21.0]])}
    (run_dir / "attention-rank.json").write_text(json.dumps({"step": 60, "results": results}))
    picture = attention_picture(results, run_dir / "attention-rank.png").read_bytes()
    html = write_report(run_dir).read_text()
    shown = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="rank of attention maps', html)
    assert shown is not None and base64.b64decode(shown[1]) == picture
    page = Page(html)
    assert page.open == [] and "step 60 (ema) 65.1% 0.457 35.3" in page.text


@pytest.mark.parametrize("name", ["attention-rank.json", "attention-rank.png"])
def test_half_written_files_do_not_stop_the_report(tmp_path, name):
    run_dir = write_run(tmp_path / "first", panels=())
    results = {"step 60 (ema)": result([[20.0]])}
    (run_dir / "attention-rank.json").write_text(json.dumps({"step": 60, "results": results}))
    attention_picture(results, run_dir / "attention-rank.png")
    path = run_dir / name
    path.write_bytes(path.read_bytes()[:40])
    assert "rank of attention maps" not in write_report(run_dir).read_text()
