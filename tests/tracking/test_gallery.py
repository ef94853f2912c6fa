"""The gallery has every variant of every strategy, and `lacuna masks` draws them on any grid or says why it cannot."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from launch.cli import main
from masking.draw import MaskStrategy
from masking.gallery import Exhibit, Refusal, exhibit, exhibit_or_refusal, gallery, settings, variants
from masking.mask import Grid
from masking.ratio import FixedRatio
from masking.strategies import all_strategies
from masking.strategies.block import Block
from masking.strategies.guided import Guided
from masking.strategies.region import Region
from masking.strategies.schedule import Phase
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.tracking.panels import masks_picture
from tests.syntax import ROOT

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_every_variant_is_in_the_gallery_with_masks_of_the_grid():
    exhibits = gallery(Grid(6, 10), 0.5, num_masks=3, num_draws=8)
    assert [item.name for item in exhibits] == [
        name for kind in all_strategies() for name in kind.variants(FixedRatio(0.5))
    ]
    for item in exhibits:
        assert isinstance(item, Exhibit), item
        assert item.hidden.shape == (3, 6, 10) and item.hidden.dtype == torch.bool
        assert item.frequency.shape == (6, 10)
        assert item.frequency.mean() == pytest.approx(0.5)
        assert item.summary.endswith(".") and item.settings.startswith("mask=")


def test_a_strategy_that_cannot_be_here_is_there_with_its_sentence():
    block = Block(FixedRatio(0.5), min_patches=16)
    with pytest.raises(ValueError, match="min_patches=16") as refused:
        block.check(Grid(4, 4), 8)
    item = exhibit_or_refusal("Block", block, Grid(4, 4))
    assert isinstance(item, Refusal) and item.why == str(refused.value)


def test_the_gallery_is_a_function_of_its_seed():
    one, same, other = (exhibit("Block", Block(), Grid(8, 8), num_draws=8, seed=seed).hidden for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", [Guided(choice="top"), Region()])
def test_without_a_photograph_every_draw_has_an_object_of_its_own(kind):
    item = exhibit("", kind, Grid(12, 12), num_masks=4, num_draws=200)
    assert item.guided
    assert len({tuple(mask.flatten().tolist()) for mask in item.hidden}) == 4
    middle, corner = item.frequency[5:7, 5:7].mean(), item.frequency[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    more = middle - corner if isinstance(kind, Region) else corner - middle  # hidden in boxes, kept on hills
    assert more > 0.1


def test_masks_follow_the_photographs_in_turn():
    detail = torch.zeros(2, 16)
    detail[0, :4], detail[1, 12:] = 1, 1
    item = exhibit("", Guided(choice="top"), Grid(4, 4), num_masks=4, num_draws=6, detail=detail)
    for index, rows in enumerate((0, 3, 0, 3)):
        assert not item.hidden[index, rows].any() and item.hidden[index].sum() == 12
    region = exhibit("", Region(inside=1.0, grow=0), Grid(4, 4), num_masks=4, num_draws=6, detail=detail)
    for index, rows in enumerate((0, 3, 0, 3)):  # boxes there are none: what is hidden first is where much happens
        assert region.hidden[index, rows].all()


def test_variants_can_be_picked_by_class_or_by_name_in_any_case():
    assert list(variants(0.75, ["block", "ColorNoise: RED"])) == ["Block", "ColorNoise: red"]
    assert [name.split(":")[0] for name in variants(0.75, ["guided"])] == ["Guided"] * 3
    with pytest.raises(ValueError, match=r"Spiral is no mask strategy.*Block, Coarse, ColorNoise"):
        variants(0.75, ["Uniform", "Spiral"])


def test_settings_are_those_that_differ_from_the_defaults():
    shown = variants(0.9)
    assert settings(shown["ColorNoise: red"]) == "mask=ColorNoise mask.color=red"
    assert settings(shown["Uniform"]) == "mask=Uniform"
    assert settings(shown["Guided: most important hidden"]) == "mask=Guided mask.keep=low mask.choice=top"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Red on the left, blue on the right, of an odd size."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    picture = Image.new("RGB", (301, 157), RED)
    picture.paste(BLUE, (150, 0, 301, 157))
    picture.save(path)
    return path


def places(path, colour):
    with Image.open(path) as picture:
        return np.argwhere((np.asarray(picture.convert("RGB")) == colour).all(2))


def size(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize("grid", ["14x14", "6x10", "33x5", "1x2", "2x2", "160x2"])
def test_the_command_shows_as_much_of_the_photograph_as_is_visible(tmp_path, grid):
    out, red = tmp_path / "masks.png", tmp_path / "red.png"
    Image.new("RGB", (301, 157), RED).save(red)
    command = ["masks", "--grid", grid, "--ratio", "0.5", "-o", str(out), "--on", str(red), "--strategy", "Uniform"]
    assert main(command) == 0
    height, width = map(int, grid.split("x"))
    patch = max(154 // max(height, width), 1)
    assert len(places(out, RED)) == 4 * (height * width // 2) * patch**2  # four masks


def test_every_strategy_fits_on_one_sheet_with_a_refusal(tmp_path):
    one = size(masks_picture(tmp_path / "one.png", (4, 4), 0.5, strategies=["Uniform"]))
    both = size(masks_picture(tmp_path / "both.png", (4, 4), 0.5, strategies=["Uniform", "Block"]))  # it is refused
    assert both[0] == one[0] and both[1] > one[1] + 60
    path = masks_picture(tmp_path / "all.png", (4, 4), 0.5)
    assert size(path)[1] > both[1]
    assert masks_picture(tmp_path / "again.png", (4, 4), 0.5).read_bytes() == path.read_bytes()


def test_a_photograph_lies_as_its_camera_was_held(tmp_path, photo):
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    with Image.open(photo) as picture:
        picture.save(turned, exif=exif)
    leftmost = {}
    for path in (photo, turned):
        out = masks_picture(tmp_path / "masks.png", (2, 2), 0.25, [path], strategies=["Uniform"])
        leftmost[path] = {colour: places(out, colour)[:, 1].min() for colour in (RED, BLUE)}
    assert leftmost[photo][RED] < leftmost[photo][BLUE]
    assert leftmost[turned][BLUE] < leftmost[turned][RED]


def test_a_strategy_of_ones_own_is_drawn_where_it_is_found(tmp_path, monkeypatch):
    class Odd(MaskStrategy):
        """Never."""

        @classmethod
        def variants(cls, ratio):
            return {"Odd: one": Block(ratio, min_patches=1), "Odd: two": Block(ratio, min_patches=2)}

    monkeypatch.setattr("masking.gallery.all_strategies", lambda: (Odd,))
    assert [item.name for item in gallery(Grid(4, 4), num_draws=4)] == ["Odd: one", "Odd: two"]
    masks_picture(tmp_path / "odd.png", (4, 4), 0.75)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "14"], "--grid=14; write it as"),
        (["--grid", "0x4"], "--grid=0x4"),
        (["--grid", "1x1"], "--grid=1x1"),
        (["--ratio", "1"], "--ratio=1.0; give a share above 0 and below 1 that leaves 1 to 195 of 196"),
        (["--ratio", "0.999"], "--ratio=0.999"),
        (["--ratio", "nan"], "--ratio=nan"),
        (["--on", "absent.jpg"], "--on=absent.jpg"),
        (["--strategy", "Spiral"], "--strategy: Spiral is no mask strategy"),
        (["--strategy", "Schedule"], "--strategy: Schedule is no mask strategy with masks of its own"),
        (["-o", "masks.jpg"], "--out=masks.jpg"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["masks", *arguments]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


PAGE = (ROOT / "docs" / "choose-a-mask.md").read_text()


def test_the_page_has_every_variant_with_its_numbers():
    for name, strategy in variants(0.75).items():
        numbers = exhibit(name, strategy, Grid(14, 14), num_draws=1000).coverage
        (row,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", PAGE, re.MULTILINE)
        beside, alone, groups, nearest, farthest, bands, uneven = (cell.strip(" %") for cell in row.split("|"))
        measured = (numbers.visible_neighbours, numbers.components, numbers.distance, numbers.farthest)
        assert tuple(map(float, (beside, groups, nearest, farthest))) == pytest.approx(measured, rel=0.05, abs=0.05)
        assert float(alone) == pytest.approx(100 * numbers.share_isolated, abs=2)
        assert [float(band) for band in bands.split()] == pytest.approx([100 * band for band in numbers.bands], abs=2)
        assert float(uneven) == pytest.approx(100 * numbers.unevenness, abs=1.5)


def test_settings_in_the_page_are_taken_and_every_variant_is_there():
    lines = [line for line in re.findall(r"`(mask=[^`]+)`", PAGE) if "NAME" not in line]
    for line in lines:
        load_config(ROOT / "configs" / "mae_vitb16.py", line.split()).mask.check(Grid(14, 14), 49)
    shown = {settings(strategy) for name, strategy in variants(0.75).items() if not name.startswith("Mixture")}
    assert shown == set(lines)
    owners = {"guided_by": "Guided", "inside": "Region", "grow": "Region", "unit": "Coarse"}
    for line in re.findall(r"`(mask\.[a-z_.]+=[^`]+)`", PAGE):
        kind = owners.get(line.split("=")[0].removeprefix("mask."), "ColorNoise")
        load_config(ROOT / "configs" / "mae_vitb16.py", [f"mask={kind}", line])


def test_nested_strategies_of_the_page_are_ones_a_config_can_have():
    names = {"FixedRatio": FixedRatio, "Phase": Phase} | {kind.__name__: kind for kind in all_strategies()}
    examples = re.findall(r"```python\nmask=(.*?)\n```", PAGE, re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        strategy = eval(code, names)
        strategy.check(Grid(14, 14), 49)
        assert exhibit("", strategy, Grid(14, 14), num_draws=4).hidden.shape == (4, 14, 14)
