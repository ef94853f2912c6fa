"""Whose mask an iLLaMA has that begins with somebody's weights: always the run's own, said or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.illama_mask import Layout
from pretrain.backbones.soft_mask import SoftMask
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.init.start import begin
from pretrain.model import build_model
from pretrain.objectives.supervised import SupervisedConfig
from pretrain.patches import normalize
from tests.backbones.plain_illama import plain_illama
from tests.engine.load_cases import save
from tests.init.cases import SQUARE, saved

PAPER = IllamaConfig("tiny", width=32, depth=3, heads=2, soft_mask=None)
EXACT = replace(PAPER, mode="exact")
FREE = replace(PAPER, mode="bidirectional")
RISING = replace(PAPER, soft_mask=SoftMask("linear", 0.5, start=0.0, end=1.0))
OURS = "mode=exact class_token=last unmasked_blocks=none -> "


def pretrained(folder: Path, backbone: IllamaConfig, alpha: float = 0.0) -> dict[str, Tensor]:
    """Weights of this encoder as they are after pretraining, each drawn and large enough to attend sharply; they are
    in first.pth too, with all that travels with them."""
    encoder = build_model(replace(SQUARE, backbone=backbone)).backbone
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.1 if parameter.ndim == 1 else 0.2, generator=rng)
        encoder.get_buffer("alpha").fill_(alpha)
    saved(dict(encoder.state_dict()), folder / "first.pth")
    return dict(encoder.named_parameters())


def tuned(folder: Path, backbone: IllamaConfig, **change: Any) -> Config:
    """The settings of a classifier that begins with that run."""
    return replace(
        SQUARE, name="tuned", backbone=backbone, objective=SupervisedConfig(num_classes=4), mask=None,
        init_from=str(folder / "first.pth"), **change,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "mode", "alpha", "unmasked", "says"),
    [
        (EXACT, "exact", None, (), "mode=exact class_token=last unmasked_blocks=none, as it was"),
        (FREE, "exact", 1.0, (), f"{OURS}mode=bidirectional class_token=last unmasked_blocks=none"),
        (replace(EXACT, unmasked_blocks=(2, 0)), "exact", None, (0, 2), f"{OURS}mode=exact class_token=last "
                                                                        "unmasked_blocks=0,2"),
        (RISING, "paper", 0.0, (), "unmasked_blocks=none alpha=0 to 1, linear"),
        (PAPER, "paper", 0.0, (), f"{OURS}mode=paper class_token=last unmasked_blocks=none alpha=0"),
    ],
    ids=["causal", "bidirectional", "blocks", "soft", "after the softmax"],
)  # fmt: skip
def test_causal_weights_are_fine_tuned_under_any_mask_and_the_table_says_both(
    tmp_path: Path, backbone: IllamaConfig, mode: str, alpha: float | None, unmasked: tuple[int, ...], says: str
) -> None:
    theirs = pretrained(tmp_path, EXACT)
    config = tuned(tmp_path, backbone)
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    ours = dict(model.backbone.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pixels = normalize(images, config.data.mean, config.data.std)
    want = plain_illama(theirs, pixels, 2, alpha, 16, mode=mode, unmasked=unmasked)
    got = model.backbone(model.backbone.embed(images)).sequence
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.detach().abs().max()))
    assert start is not None and f"\nmask      {start.facts['mask']}\n" in str(start)
    assert start.facts["mask"].endswith(says)


def test_alpha_is_what_the_run_says_and_not_where_its_source_stopped(tmp_path: Path) -> None:
    pretrained(tmp_path, replace(PAPER, soft_mask=SoftMask()), alpha=1.0)
    for backbone, first in ((PAPER, 0.0), (RISING, 0.0), (replace(PAPER, soft_mask=SoftMask(cutoff=0, end=0.5)), 0.5)):
        model = build_model(tuned(tmp_path, backbone))
        start = begin(model.backbone, model.objective, tuned(tmp_path, backbone))
        assert float(model.backbone.get_buffer("alpha")) == first
        assert start is not None and f"alpha=1 -> {backbone.layout} alpha={first:g}" in start.facts["mask"]


def test_a_mask_that_is_lifted_goes_from_causal_to_bidirectional_on_schedule(tmp_path: Path) -> None:
    pretrained(tmp_path, PAPER)
    config = tuned(tmp_path, RISING)
    model = build_model(config)
    begin(model.backbone, model.objective, config)
    images = torch.rand(2, 3, 64, 64)
    state = dict(model.backbone.named_parameters())
    for step, alpha in ((0, 0.0), (5, 5 / 9), (9, 1.0), (19, 1.0)):
        assert model.at_step(step, 20, 7.0) == {"alpha": pytest.approx(alpha)}
        want = plain_illama(state, images, 2, alpha, 16)
        got = model.backbone(model.backbone.embed(images)).sequence
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.detach().abs().max()))


@pytest.mark.parametrize(
    ("source", "backbone", "learns_classes", "says"),
    [
        (EXACT, replace(EXACT, class_token="first"), True, "set backbone.class_token=last"),
        (replace(EXACT, class_token="first"), FREE, True, "set backbone.class_token=first"),
        (EXACT, PAPER, False, "only a run that learns classes may begin with weights of another mask"),
    ],
    ids=["token moved to the front", "token moved behind", "pretraining goes on"],
)
def test_what_weights_cannot_be_trained_on_under_is_refused(
    tmp_path: Path, source: IllamaConfig, backbone: IllamaConfig, learns_classes: bool, says: str
) -> None:
    pretrained(tmp_path, source)
    config = tuned(tmp_path, backbone)
    if not learns_classes:
        config = replace(config, objective=SQUARE.objective, mask=SQUARE.mask)
    model = build_model(config)
    with pytest.raises(ConfigError, match=says):
        begin(model.backbone, model.objective, config)


def test_a_run_says_its_mask_itself(tmp_path: Path) -> None:
    save(tmp_path / "run", 3, config=replace(SQUARE, backbone=replace(EXACT, unmasked_blocks=(1,))))
    config = replace(tuned(tmp_path, FREE), init_from=str(tmp_path / "run"))
    model = build_model(config)
    start = begin(model.backbone, model.objective, config)
    assert start is not None and start.facts["mask"].startswith("mode=exact class_token=last unmasked_blocks=1 ->")


def test_a_class_token_in_front_may_be_let_see_or_lose_the_mask_with_the_others(tmp_path: Path) -> None:
    pretrained(tmp_path, replace(EXACT, class_token="first"))
    for backbone in (replace(EXACT, class_token="first_seen"), replace(FREE, class_token="first")):
        config = tuned(tmp_path, backbone)
        model = build_model(config)
        assert begin(model.backbone, model.objective, config) is not None


def test_the_authors_files_are_of_their_own_mask(tmp_path: Path) -> None:
    config = replace(SQUARE, backbone=PAPER)
    state = build_model(config).backbone.state_dict()
    source = saved({n: t for n, t in state.items() if n not in ("alpha", "layout")}, tmp_path / "illama.pth")
    exact = replace(tuned(tmp_path, EXACT), init_from=source)
    model = build_model(exact)
    start = begin(model.backbone, model.objective, exact)
    assert start is not None and start.facts["mask"].startswith(
        "mode=paper class_token=last unmasked_blocks=none alpha=0 ->"
    )
    pretraining = replace(config, name="second", backbone=EXACT, init_from=source)
    with pytest.raises(ConfigError, match="was trained with mode=paper"):
        begin(model.backbone, build_model(pretraining).objective, pretraining)


def test_a_layout_comes_back_from_its_numbers() -> None:
    for layout in (Layout(), Layout.of("exact", "first_seen", (3, 0)), Layout.of("bidirectional", "first", None)):
        assert Layout.read(layout.numbers(4)) == layout
    assert Layout.of("paper", "last", (2, 1)).numbers(3) == [0, 0, 0, 1, 1]
