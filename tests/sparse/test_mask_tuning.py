"""Regularised mask tuning: weights that never change, a score each, and gradients held against forgetting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.sparse.composable import Overlay
from pretrain.sparse.config import MaskTuningConfig, SparseConfig
from pretrain.sparse.container import SparseFile, fingerprint, read_sparse, write_sparse
from pretrain.sparse.folded import change_of, folded, sparse_parts
from pretrain.sparse.mask_tuning import FORGETTING, ScoredMask, keep_probability
from tests.sparse import cases


def sparse(**settings: float) -> SparseConfig:
    return SparseConfig(method="mask_tuning", mask_tuning=MaskTuningConfig(**settings))


def test_at_the_start_the_encoder_is_the_frozen_one_bit_for_bit() -> None:
    plain = cases.model()
    made = cases.model(sparse(), plain.backbone.state_dict())
    images = cases.batch(0)[0]
    for mode in (True, False):
        made.train(mode)
        for reads in (made, plain):
            reads.backbone.blocks[0].attn.qkv.weight  # noqa: B018  # a second reading changes nothing
        found = made.backbone(made.backbone.embed(images)).sequence
        assert torch.equal(found, plain.backbone(plain.backbone.embed(images)).sequence)
    assert all(torch.equal(t, plain.backbone.state_dict()[n]) for n, t in folded(made.backbone.state_dict()).items())


def test_only_attention_has_scores_and_its_weights_never_change() -> None:
    plain = cases.model().backbone.state_dict()
    made = cases.model(sparse(), plain)
    names = {name for name, _ in made.backbone.named_parameters()}
    assert len(names) == 4 and all(".attn." in name and name.endswith("margins") for name in names)
    assert {name.removeprefix("backbone.") for name in made.no_weight_decay()} == names
    cases.train(made, 8, lr=5e-3)
    raw = made.backbone.state_dict()
    for name, parts in sparse_parts(raw).items():
        assert torch.equal(parts["base"], plain[name])
        kept = folded(raw)[name]
        assert torch.equal(kept, torch.where(parts["margins"] > 0, plain[name], torch.zeros(())))
        assert 0 < float((kept == 0).float().mean()) < 0.9
    assert all(torch.equal(tensor, plain[name]) for name, tensor in raw.items() if name in plain)


def test_the_gradient_goes_straight_through_the_decision_times_the_weight() -> None:
    base = torch.tensor([[2.0, -3.0, 0.5]])
    part = ScoredMask(base.shape, 0.005, 0.0)
    part.margins.data[0, 1] = -1.0
    slope = torch.tensor([[1.0, 10.0, -4.0]])
    (part(base) * slope).sum().backward()
    assert torch.equal(part(base), torch.tensor([[2.0, 0.0, 0.5]]))
    assert torch.equal(part.margins.grad, slope * base)


def test_the_probability_is_that_of_the_paper() -> None:
    task = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, 1.0, 0.0, 0.0])
    forgetting = torch.tensor([3.0, -1.0, -1e30, 2.0, -5.0, -3.0, 0.0, 4.0])
    wanted = torch.tensor([1.0, 0.5, 0.0, 0.5, 1.0, 0.25, 1.0, 0.5])
    torch.testing.assert_close(keep_probability(task, forgetting), wanted)
    g_a, g_b = torch.randn(2, 10_000)
    found = keep_probability(g_a, g_b)
    assert (
        0 <= found.min()
        and found.max() <= 1
        and torch.equal(found[g_a * g_b > 0], torch.ones(1).expand(int((g_a * g_b > 0).sum())))
    )
    literal = (1 + g_a.sign() * (g_a + g_b) / (g_a.abs() + g_b.abs())) / 2
    torch.testing.assert_close(found, literal)


@pytest.mark.parametrize(("dropout", "share"), [(1.0, 0.25), (0.5, 0.625), (0.0, 1.0)])
def test_elements_against_the_frozen_encoder_are_dropped_as_often_as_the_paper_says(
    dropout: float, share: float
) -> None:
    torch.manual_seed(0)
    base = torch.ones(200, 200)
    part = ScoredMask(base.shape, 0.005, dropout)
    loss = part(base).sum()
    part.open(FORGETTING) if dropout else None
    loss = loss - 3 * part(base).sum() if dropout else loss
    loss.backward()
    assert float(part.margins.grad.mean()) == pytest.approx(share, abs=0.01)
    assert set(part.margins.grad.unique().tolist()) <= {1 - dropout, 1.0}


def test_a_saved_mask_reloads_to_the_same_logits(tmp_path: Path) -> None:
    plain = cases.model()
    base = {name: tensor.clone() for name, tensor in plain.backbone.state_dict().items()}
    made = cases.model(sparse(dropout=0.5), base).eval()
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    parts = {name: change_of(p)[1] for name, p in sparse_parts(made.backbone.state_dict()).items()}
    size = write_sparse(SparseFile("kept", "mask_tuning", fingerprint(base), parts), tmp_path / "a")
    num = sum(part.chosen.numel() for part in parts.values())
    assert num / 8 <= size < num / 8 + 2000, "a bit a weight"
    images = cases.batch(0)[0]
    before = plain.objective.classify(plain.backbone, images)
    overlay = Overlay(plain.backbone, [read_sparse(tmp_path / "a")])
    assert torch.equal(plain.objective.classify(plain.backbone, images), made.objective.classify(made.backbone, images))
    assert not torch.equal(plain.objective.classify(plain.backbone, images), before)
    overlay.revert()
    assert torch.equal(plain.objective.classify(plain.backbone, images), before)


def test_forgetting_is_zero_at_the_start_and_only_holds_gradients_back() -> None:
    base, grads = cases.model().backbone.state_dict(), []
    for dropout in (0.0, 1.0):
        made = cases.model(sparse(dropout=dropout, penalty=0.0), base)
        losses = cases.loss_of(made, 0)
        assert ("forgetting" in losses) == bool(dropout)
        assert not dropout or not losses["forgetting"].any()
        torch.stack([values.mean() for values in losses.values()]).sum().backward()
        grads.append([parameter.grad for parameter in made.parameters()])
    assert all(torch.equal(free, held) for free, held in zip(*grads, strict=True))
    made.eval()
    assert "forgetting" not in cases.loss_of(made, 0)
