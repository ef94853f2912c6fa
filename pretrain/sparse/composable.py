"""Composable sparse fine-tuning (Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer"): the k
weights that an ordinary fine-tuning moved most, trained again from the base while all others stay, and kept as a
difference. Differences of a task and of a domain are added up.

A difference is a parameter of its own, zero at the start, that only counts where it was chosen. Elsewhere its gradient
is exactly zero, so Adam's moments stay zero, and weight decay, which pulls the difference and not the weight towards
zero, has nothing to pull: the base's weights keep their bits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from masking.rng import generator
from pretrain.errors import ConfigError
from pretrain.sparse.container import Part, SparseFile, content, fingerprint, matrices


class Difference(nn.Module):
    """Turns a frozen matrix into the matrix with a trained difference at chosen positions."""

    keep: Tensor  # the matrix's shape, bool

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.difference = nn.Parameter(torch.zeros(keep.shape))

    def forward(self, base: Tensor) -> Tensor:
        """base, any float dtype, with the difference added where it was chosen."""
        return changed(base, self.keep, self.difference)


def changed(base: Tensor, keep: Tensor, difference: Tensor) -> Tensor:
    """base + difference where keep; base's own bits elsewhere, and no gradient there."""
    return torch.where(keep != 0, base + difference, base)


def select(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], keep: float) -> SparseFile:
    """The share keep of all weights in base's matrices that tuned, a state dict of the same encoder, moved most: one
    threshold for all matrices, exactly k = round(keep * n) of them, and of equal ones those that come first.

    Raises ConfigError for encoders that do not fit, and where fewer than k weights differ at all."""
    there = matrices(tuned)
    for name, tensor in matrices(base).items():
        if name not in there or there[name].shape != tensor.shape:
            found = list(there[name].shape) if name in there else "none"
            raise ConfigError(f"{name} is {list(tensor.shape)} in the base and {found} in the tuned encoder; give two "
                              "of the same shape")  # fmt: skip
    moved = torch.cat([(there[name] - tensor).abs().reshape(-1) for name, tensor in matrices(base).items()])
    if not moved.isfinite().all():
        raise ConfigError("base or tuned encoder holds weights that are not finite")
    k = _count(keep, len(moved))
    if int((moved > 0).sum()) < k:
        raise ConfigError(
            f"only {int((moved > 0).sum())} of {len(moved)} weights differ between base and tuned encoder, and --keep "
            f"{keep:g} asks for {k}; give a smaller share, or an encoder that was trained on from the base"
        )
    return _positions(base, top(moved, k), "largest difference")


def select_at_random(base: Mapping[str, Tensor], keep: float, seed: int) -> SparseFile:
    """As many weights drawn from seed: what `select` must beat."""
    size = sum(tensor.numel() for tensor in matrices(base).values())
    scores = torch.rand(size, generator=generator(seed, "sparse", "positions"), dtype=torch.float64)
    return _positions(base, top(scores, _count(keep, size)), "random")


def top(scores: Tensor, k: int) -> Tensor:
    """(n,) bool: the k largest of scores (n,), exactly, the earlier of equal ones first."""
    threshold = scores.kthvalue(len(scores) - k + 1).values
    chosen = scores > threshold
    ties = (scores == threshold).nonzero().reshape(-1)
    chosen[ties[: k - int(chosen.sum())]] = True
    return chosen


def composed(base: Mapping[str, Tensor], files: Sequence[SparseFile]) -> dict[str, Tensor]:
    """base, a state dict, under all files: differences are added up and then to the base, whatever order they are
    given in, and what any file of kept weights drops is zero. The caller has asked `require_base`.

    The sum is made in float64, over files in the order of their hashes, and rounded once."""
    ordered = sorted(files, key=lambda file: hashlib.sha256(content(file)).digest())
    if any(file.kind == "positions" for file in ordered):
        raise ConfigError(
            "a file of positions alone changes nothing; train with it, and give what `sparse save` writes"
        )
    state = dict(base)
    for name in sorted({name for file in ordered for name in file.parts}):
        parts = [(file.kind, file.parts[name]) for file in ordered if name in file.parts]
        differences = [part for kind, part in parts if kind == "difference"]
        if differences:
            total = torch.stack([part.difference().double() for part in differences]).sum(0)
            touched = torch.stack([part.chosen for part in differences]).any(0)
            moved = (base[name].double() + total).to(base[name].dtype)
            state[name] = torch.where(touched, moved, base[name])
        for kind, part in parts:
            if kind == "kept":
                state[name] = torch.where(part.chosen, state[name], torch.zeros_like(state[name]))
    return state


class Overlay:
    """Files laid over the weights of an encoder, until they are taken off again, bit for bit: the originals are kept,
    for a difference subtracted again would be rounded."""

    @torch.no_grad()
    def __init__(self, encoder: nn.Module, files: Sequence[SparseFile]) -> None:
        """Changes encoder's weights in place. Raises ConfigError for files of another base."""
        state = encoder.state_dict()
        for number, file in enumerate(files):
            file.require_base(state, "the encoder", f"file {number + 1}")
        self._weights, self._originals = state, {}
        for name, tensor in composed(state, files).items():
            different = tensor.ne(state[name])
            if different.any():
                self._originals[name] = (different, state[name][different].clone())
                state[name].copy_(tensor)

    @torch.no_grad()
    def revert(self) -> None:
        """Gives the encoder the bits it had."""
        for name, (different, values) in self._originals.items():
            self._weights[name][different] = values
        self._originals = {}


def _positions(base: Mapping[str, Tensor], chosen: Tensor, method: str) -> SparseFile:
    """A file of chosen (n,) bool over base's matrices end to end."""
    named = matrices(base)
    cut = chosen.split([tensor.numel() for tensor in named.values()])
    parts = {name: Part(piece.view(named[name].shape)) for name, piece in zip(named, cut, strict=True)}
    return SparseFile("positions", method, fingerprint(base), parts)


def _count(keep: float, size: int) -> int:
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep {keep:g}: it must be a share above 0 and at most 1, for example 0.05")
    return max(1, round(keep * size))
