"""Composable sparse fine-tuning: exactly k weights, chosen by how far they moved; the others keep every bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.sparse.composable import Overlay, composed, select, select_at_random, top
from pretrain.sparse.config import SparseConfig
from pretrain.sparse.container import Part, SparseFile, fingerprint, matrices, write_sparse
from pretrain.sparse.folded import change_of, folded, sparse_parts
from tests.sparse import cases


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().view(torch.int32)


def test_the_largest_k_are_taken_exactly_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert top(scores, 3).tolist() == [False, True, True, True, False, False]
    assert top(torch.zeros(5), 2).tolist() == [True, True, False, False, False]
    assert all(int(top(torch.randint(0, 4, (100,)).float(), k).sum()) == k for k in range(1, 101))


@pytest.mark.parametrize("keep", [0.001, 0.05, 1.0])
def test_one_threshold_for_all_matrices_selects_exactly_the_share(keep: float) -> None:
    base = cases.model().backbone.state_dict()
    rng = torch.Generator().manual_seed(1)
    tuned = {name: t + 0.01 * torch.randn(t.shape, generator=rng) for name, t in base.items()}
    made = select(base, tuned, keep)
    size = sum(t.numel() for t in matrices(base).values())
    assert made.num_chosen == round(keep * size) and made.num_weights == size
    assert made.base == fingerprint(base)
    moved = {name: (tuned[name] - base[name]).abs() for name in matrices(base)}
    chosen = torch.cat([moved[name][part.chosen] for name, part in made.parts.items()])
    left = torch.cat([t.reshape(-1) for t in moved.values()]).sort(descending=True).values[len(chosen) :]
    assert not len(left) or chosen.min() >= left.max()


def test_what_cannot_be_selected_is_refused() -> None:
    base = cases.model().backbone.state_dict()
    with pytest.raises(ConfigError, match=r"only 0 of .* weights differ"):
        select(base, base, 0.05)
    for keep in (0.0, 1.5):
        with pytest.raises(ConfigError, match="a share above 0 and at most 1"):
            select(base, base, keep)
    with pytest.raises(ConfigError, match=r"blocks.0.attn.qkv.weight is .* and none in the tuned"):
        select(base, {n: t for n, t in base.items() if n != "blocks.0.attn.qkv.weight"}, 0.1)
    with pytest.raises(ConfigError, match="not finite"):
        select(base, {n: t * torch.nan if t.ndim == 2 else t for n, t in base.items()}, 0.1)


def test_weights_that_were_not_chosen_keep_their_bits_under_adamw_with_decay_and_momentum(tmp_path: Path) -> None:
    base = cases.model().backbone.state_dict()
    file = select_at_random(base, 0.05, seed=3)
    write_sparse(file, tmp_path / "mask")
    made = cases.model(SparseConfig(mask=str(tmp_path / "mask")), base)
    assert made.no_weight_decay() == set()
    before = cases.held_out(made)
    assert before == cases.held_out(cases.model(base=base))
    cases.train(made, 5, lr=1e-2, weight_decay=0.5)
    plain = folded(made.backbone.state_dict())
    assert sorted(plain) == sorted(base)
    for name, tensor in base.items():
        chosen = file.parts[name].chosen if name in file.parts else torch.zeros(tensor.shape, dtype=torch.bool)
        same = bits(plain[name]) == bits(tensor)
        assert same[~chosen].all(), name
        assert float((~same[chosen]).float().mean()) > 0.9 or not chosen.any(), "what was chosen did not move"
    raw = made.backbone.state_dict()
    assert all(
        int(part.difference().count_nonzero()) <= file.parts[name].chosen.sum()
        for name, part in ((n, change_of(p)[1]) for n, p in sparse_parts(raw).items())
        if name in file.parts
    )
    assert torch.equal(made.backbone.blocks[0].attn.qkv.weight, plain["blocks.0.attn.qkv.weight"])


def difference(base: dict[str, torch.Tensor], seed: int, size: float = 1e-2) -> SparseFile:
    rng, parts = torch.Generator().manual_seed(seed), {}
    for name, part in select_at_random(base, 0.05, seed).parts.items():
        parts[name] = Part(part.chosen, size * torch.randn(int(part.chosen.sum()), generator=rng))
    return SparseFile("difference", "composable", fingerprint(base), parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_overlay_taken_off_again_leaves_every_bit_as_it_was(dtype: torch.dtype) -> None:
    encoder = cases.model().backbone.to(dtype)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    overlay = Overlay(encoder, [difference(before, 1, size=3.0), difference(before, 2, size=3.0)])
    changed = [name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(changed) == set(difference(before, 1).parts)
    overlay.revert()
    assert all(torch.equal(bits(t), bits(before[name])) for name, t in encoder.state_dict().items())


def test_changes_may_be_given_in_any_order() -> None:
    base = {name: tensor.detach() for name, tensor in cases.model().backbone.state_dict().items()}
    files = [difference(base, seed) for seed in range(3)]
    kept = {name: Part(torch.rand(t.shape) > 0.5) for name, t in matrices(base).items() if ".attn." in name}
    files.append(SparseFile("kept", "mask_tuning", fingerprint(base), kept))
    first = composed(base, files)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        again = composed(base, [files[index] for index in order])
        assert all(torch.equal(bits(first[name]), bits(again[name])) for name in base)
    alone = composed(base, files[:1])
    name, part = next(iter(files[0].parts.items()))
    assert torch.equal(alone[name], base[name] + part.difference())
    with pytest.raises(ConfigError, match="positions alone changes nothing"):
        composed(base, [select_at_random(base, 0.1, 0)])


def test_positions_of_another_encoder_are_refused(tmp_path: Path) -> None:
    base = cases.model().backbone.state_dict()
    write_sparse(select_at_random(base, 0.05, seed=3), tmp_path / "mask")
    other = {name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    with pytest.raises(ConfigError, match=r"sparse.mask=.*mask belongs to an encoder whose matrices hash to"):
        cases.model(SparseConfig(mask=str(tmp_path / "mask")), other)
    encoder = cases.model(base=other).backbone
    with pytest.raises(ConfigError, match="file 1 belongs to an encoder"):
        Overlay(encoder, [difference(base, 1)])


@pytest.mark.slow
def test_the_weights_that_moved_most_learn_more_than_as_many_at_random(tmp_path: Path) -> None:
    first = cases.model()
    cases.train(first, 60, lr=3e-3)
    base = {name: tensor.clone() for name, tensor in first.backbone.state_dict().items()}
    tuned = cases.model(base=base)
    cases.train(tuned, 60, lr=1e-3, channel=2)
    files = {"selected": select(base, tuned.backbone.state_dict(), 0.02), "random": select_at_random(base, 0.02, 0)}
    assert files["selected"].num_chosen == files["random"].num_chosen
    loss = {}
    for name, file in files.items():
        write_sparse(file, tmp_path / name)
        made = cases.model(SparseConfig(mask=str(tmp_path / name)), base)
        loss[name] = cases.train(made, 50, lr=2e-2, channel=2)
    assert loss["selected"] < 0.7 * loss["random"], loss
