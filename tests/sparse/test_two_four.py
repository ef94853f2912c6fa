"""Learned 2:4 sparsity: two of every four, by sampling, from the mask by magnitude on."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from pretrain.sparse.config import SparseConfig, TwoFourConfig
from pretrain.sparse.folded import change_of, folded, sparse_parts
from pretrain.sparse.two_four import CANDIDATES, TwoFour, hard_mask, magnitude_mask, soft_mask, with_prior
from tests.sparse import cases


def sparse(**settings: object) -> SparseConfig:
    return SparseConfig(method="two_four", train_rest=False, two_four=TwoFourConfig(**settings))


def noise(*shape: int) -> torch.Tensor:
    return -(-torch.rand(shape, generator=torch.Generator().manual_seed(0)).log()).log()


def test_there_are_six_masks_of_two() -> None:
    assert len(CANDIDATES.unique(dim=0)) == 6 and torch.equal(CANDIDATES.sum(1), torch.full((6,), 2.0))


def test_a_soft_mask_of_four_sums_to_two_and_a_hard_one_keeps_two() -> None:
    logits = torch.randn(16, 8, 6)
    soft = soft_mask(logits, noise(16, 8, 6), torch.tensor(3.0), torch.tensor(0.7))
    assert soft.shape == (16, 32) and 0 <= soft.min() and soft.max() <= 1
    torch.testing.assert_close(rearrange(soft, "o (g four) -> o g four", four=4).sum(-1), torch.full((16, 8), 2.0))
    assert (rearrange(hard_mask(logits), "o (g four) -> o g four", four=4).sum(-1) == 2).all()


def test_as_the_temperature_falls_to_zero_without_noise_the_soft_mask_is_the_hard_one() -> None:
    logits = torch.randn(16, 8, 6)
    soft = soft_mask(logits, torch.zeros(16, 8, 6), torch.tensor(1.0), torch.tensor(1e-6))
    torch.testing.assert_close(soft, hard_mask(logits).float())
    far = soft_mask(logits, torch.zeros(16, 8, 6), torch.tensor(1.0), torch.tensor(1e6))
    torch.testing.assert_close(far, torch.full((16, 32), 0.5), rtol=0, atol=1e-4)


def test_masks_are_drawn_as_often_as_their_logits_say() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 0.0]).expand(20_000, 1, 6)
    soft = soft_mask(logits, noise(20_000, 1, 6), torch.tensor(1.0), torch.tensor(1e-4))
    wanted = logits[0, 0].softmax(0) @ CANDIDATES
    torch.testing.assert_close(soft.mean(0), wanted, rtol=0, atol=0.015)


def test_a_strong_prior_is_the_mask_by_magnitude_and_its_formula_the_papers() -> None:
    base = torch.randn(64, 32)
    magnitude = magnitude_mask(base)
    largest = rearrange(base.abs(), "o (g four) -> o g four", four=4).topk(2).values.sum()
    assert float((base.abs() * magnitude).sum()) == pytest.approx(float(largest))
    part = TwoFour(base, prior=100.0, init_std=0.01, seed=0, index=0)
    assert torch.equal(hard_mask(part.logits), magnitude)
    logits = torch.randn(64, 8, 6)
    chosen = rearrange(magnitude, "o (g four) -> o g 1 four", four=4).float()
    overlap = (chosen * CANDIDATES).sum(-1)
    torch.testing.assert_close(with_prior(logits, magnitude, 3.0), logits + (overlap - 1) * logits.std() * 3)
    assert not torch.equal(hard_mask(TwoFour(base, 0.0, 0.01, 0, 0).logits), magnitude)


def test_a_step_is_drawn_from_its_number_alone_and_each_matrix_has_its_own() -> None:
    base = torch.ones(8, 8)
    parts = [TwoFour(base, 3.0, 0.01, seed=0, index=index) for index in (0, 0, 1)]
    for part in parts:
        part.logits.data.zero_()
    made = []
    for part, steps in zip(parts, ([0, 1, 2], [2], [2]), strict=True):
        for step in steps:
            torch.rand(step + 1)  # whatever else was drawn
            part.at_step(step, 1.0, 1.0)
        made.append(part(base))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_blocks_alone_are_pruned_to_two_of_four_and_nothing_else_of_the_model_changes() -> None:
    plain = cases.model()
    made = cases.model(sparse(), plain.backbone.state_dict())
    assert {name.split(".parametrizations")[0] for name, _ in made.named_parameters()} == {
        f"backbone.blocks.{block}.{part}"
        for block in (0, 1)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    head = made.objective.head.weight.clone()
    cases.train(made, 3, lr=1e-2)
    raw, before = made.backbone.state_dict(), plain.backbone.state_dict()
    for name, tensor in folded(raw).items():
        if name in sparse_parts(raw):
            four = rearrange(tensor != 0, "o (g four) -> o g four", four=4).sum(-1)
            assert (four == 2).all(), name
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])
            kind, part = change_of(sparse_parts(raw)[name])
            assert kind == "kept" and torch.equal(part.chosen, tensor != 0)
        else:
            assert torch.equal(tensor, before[name]), name
    assert torch.equal(head, made.objective.head.weight)
    made.eval()
    assert torch.equal(made.backbone.blocks[0].attn.qkv.weight, folded(raw)["blocks.0.attn.qkv.weight"])


def test_the_schedules_go_from_end_to_end_and_the_norm_is_pushed_up() -> None:
    made = cases.model(sparse(keep_norm=1e-3), cases.model().backbone.state_dict())
    assert made.at_step(0, 11, 1.0) == {"sparse_temperature": 4.0, "sparse_scale": 100.0}
    losses = cases.loss_of(made, 0)
    weights = [w.float().square().sum() for name, w in kept_weights(made)]
    torch.testing.assert_close(losses["kept_norm"], (-1e-3 * torch.stack(weights).sum()).expand(32))
    assert made.at_step(10, 11, 1.0) == pytest.approx({"sparse_temperature": 0.05, "sparse_scale": 500.0})
    assert not cases.loss_of(made, 0)["kept_norm"].any(), "the name stays, for every line of the log has the same"
    made = cases.model(sparse(keep_norm=0.0), cases.model().backbone.state_dict())
    made.at_step(0, 11, 1.0)
    assert "kept_norm" not in cases.loss_of(made, 0)


def kept_weights(made: object) -> list[tuple[str, torch.Tensor]]:
    named = made.backbone.named_modules()  # type: ignore[attr-defined]
    return [(name, module.weight) for name, module in named if hasattr(module, "parametrizations")]


def test_learned_masks_lose_less_than_masks_by_magnitude_of_equal_data() -> None:
    dense = cases.model()
    cases.train(dense, 60, lr=3e-3)
    base, head = dense.backbone.state_dict(), dense.objective.state_dict()
    loss = {}
    for name, prior, steps in (("magnitude", 1e3, 0), ("learned", 3.0, 40)):
        made = cases.model(sparse(prior=prior, scale=(100.0, 500.0)), base)
        made.objective.load_state_dict(head)
        loss[name] = cases.train(made, steps, lr=1e-2) if steps else cases.held_out(made)
    assert loss["learned"] < 0.8 * loss["magnitude"], loss
