"""The file of a sparse change: what is written comes back, and what is not ours or of another base is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.errors import ConfigError
from pretrain.sparse.container import Part, SparseFile, fingerprint, matrices, read_sparse, write_sparse

ENCODER = {
    "cls_token": torch.ones(1, 1, 8),
    "blocks.0.attn.qkv.weight": torch.arange(192.0).view(24, 8),
    "blocks.0.attn.qkv.bias": torch.ones(24),
    "blocks.0.mlp.fc1.weight": torch.arange(256.0).view(32, 8) / 7,
    "norm.weight": torch.ones(8),
}


def file(share: float, kind: str = "difference") -> SparseFile:
    rng = torch.Generator().manual_seed(0)
    parts = {}
    for name, tensor in matrices(ENCODER).items():
        chosen = torch.rand(tensor.shape, generator=rng) < share
        values = torch.randn(int(chosen.sum()), generator=rng) if kind == "difference" else None
        parts[name] = Part(chosen, values)
    dense = {"objective.head.weight": torch.randn(3, 8, generator=rng)}
    return SparseFile(kind, "composable", fingerprint(ENCODER), parts, dense, {"step": 7})


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("kind", ["difference", "kept", "positions"])
def test_what_is_written_comes_back(share: float, kind: str, tmp_path: Path) -> None:
    made = file(share, kind)
    assert write_sparse(made, tmp_path / "a.safetensors") == (tmp_path / "a.safetensors").stat().st_size
    found = read_sparse(tmp_path / "a.safetensors")
    assert (found.kind, found.method, found.base, found.about) == (kind, "composable", made.base, {"step": 7})
    assert found.num_chosen == made.num_chosen and found.num_weights == 448
    for name, part in made.parts.items():
        assert torch.equal(found.parts[name].chosen, part.chosen)
        assert part.values is None or torch.equal(found.parts[name].values, part.values)
    assert torch.equal(found.dense["objective.head.weight"], made.dense["objective.head.weight"])


def test_only_matrices_can_be_changed_and_only_they_are_in_the_fingerprint() -> None:
    assert list(matrices(ENCODER)) == ["blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"]
    assert fingerprint(ENCODER) == fingerprint({**ENCODER, "norm.weight": torch.zeros(8)})
    other = ENCODER["blocks.0.mlp.fc1.weight"].clone()
    other[3, 3] = other[3, 3].nextafter(torch.tensor(9e9))
    assert fingerprint(ENCODER) != fingerprint({**ENCODER, "blocks.0.mlp.fc1.weight": other})


def test_a_weight_costs_a_bit_where_many_are_chosen_and_four_bytes_where_few_are(tmp_path: Path) -> None:
    chosen = torch.zeros(400, 1000, dtype=torch.bool)
    sizes = []
    for share in (0.5, 0.001):
        chosen.view(-1)[: int(400_000 * share)] = True
        made = SparseFile("kept", "mask_tuning", "0", {"a.weight": Part(chosen.clone())})
        sizes.append(write_sparse(made, tmp_path / "a.safetensors"))
        chosen[:] = False
    assert 50_000 < sizes[0] < 51_000 and 1600 < sizes[1] < 2600


def test_another_base_is_refused_in_a_sentence(tmp_path: Path) -> None:
    made = file(0.1)
    made.require_base(ENCODER, "runs/base", "task.safetensors")
    other = {**ENCODER, "blocks.0.mlp.fc1.weight": torch.zeros(32, 8)}
    with pytest.raises(
        ConfigError, match=r"task.safetensors belongs to an encoder whose matrices hash to .*runs/other"
    ):
        made.require_base(other, "runs/other", "task.safetensors")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda t, f: (t, {}), "is no sparse file of ours"),
        (lambda t, f: (t, f | {"kind": "patch"}), "unknown kind 'patch'"),
        (lambda t, f: (t, f | {"shapes": {"a.weight": [1 << 20, 1 << 20]}}), "claims to choose among more weights"),
        (lambda t, f: (t, f | {"shapes": {"a.weight": [-8, -8]}}), "no positive number"),
        (lambda t, f: (t, f | {"shapes": {"a.weight": [8, 4]}}), "lie outside"),
        (lambda t, f: (t | {"values|a.weight": torch.ones(9)}, f), "9 values for 1 positions"),
        (lambda t, f: ({"x": torch.ones(1)}, f), "KeyError"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(damage: object, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    chosen = torch.zeros(10, 10, dtype=torch.bool)
    chosen[9, 9] = True
    write_sparse(SparseFile("difference", "composable", "0", {"a.weight": Part(chosen, torch.ones(1))}), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        facts = json.loads(opened.metadata()["lacuna"])
    tensors, facts = damage(load_file(path), facts)  # type: ignore[operator]
    save_file(tensors, path, {"lacuna": json.dumps(facts)} if facts else None)
    with pytest.raises(ConfigError, match=why):
        read_sparse(path)


def test_a_file_that_is_not_there_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sparse(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as a sparse file"):
        read_sparse(tmp_path / "text")
