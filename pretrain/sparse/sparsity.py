"""Makes an encoder sparse: freezes all it has, and puts what is trained in front of some of its matrices.

What is frozen becomes a buffer, under its old name: part of every checkpoint, unknown to the optimizer, the same at
every ZeRO stage. A matrix that something is trained about is computed anew whenever it is read
(torch.nn.utils.parametrize), so encoders need not know of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pretrain.errors import ConfigError
from pretrain.sparse.composable import Difference
from pretrain.sparse.config import SparseConfig
from pretrain.sparse.container import matrices, read_sparse
from pretrain.sparse.mask_tuning import FORGETTING, FROZEN, TASK, ScoredMask
from pretrain.sparse.two_four import TwoFour
from pretrain.types import Features, Losses

_ATTENTION = re.compile(r"blocks\.\d+\.attn\.\w+\.weight")
_BLOCK = re.compile(r"blocks\.\d+\..+\.weight")
Run = Callable[[], tuple[Losses, Features]]


class Sparsity:
    """What is trained about a frozen encoder, and what it adds to a step."""

    def __init__(
        self, config: SparseConfig, backbone: nn.Module, objective: nn.Module, seed: int, *, begins: bool
    ) -> None:
        """Changes backbone in place, and objective where it is not to be trained. begins: the weights are those the
        run begins with; else a checkpoint will say them, and which are chosen. Raises ConfigError for a file of
        positions in another encoder."""
        self.config, self._backbone = config, backbone
        state = {name: tensor.detach() for name, tensor in backbone.state_dict().items()}
        parts = dict(_parts(config, state, seed, begins=begins))
        self._size = sum(state[name].numel() for name in parts)
        before = _untrained(backbone, objective)
        _freeze(backbone)
        if not config.train_rest:
            _freeze(objective)
        self._trained: list[tuple[nn.Module, nn.Module]] = []
        for name, part in parts.items():
            owner = backbone.get_submodule(name.removesuffix(".weight"))
            parametrize.register_parametrization(owner, "weight", part, unsafe=True)
            self._trained.append((owner, part))
        self.given = _untrained(backbone, objective) - before
        is_choice = config.method != "composable"  # and a score that decays is another choice, not a smaller one
        self.undecayed = {f"backbone.{name}" for name, _ in backbone.named_parameters()} if is_choice else set()
        self._keep_norm = 0.0

    def at_step(self, step: int, total_steps: int) -> dict[str, float]:
        """Sets what depends on the step about to be trained, and says it by name for the metrics."""
        if self.config.method != "two_four":
            return {}
        settings, done = self.config.two_four, step / max(total_steps - 1, 1)
        scale, temperature = (low + (high - low) * done for low, high in (settings.scale, settings.temperature))
        for _, part in self._trained:
            assert isinstance(part, TwoFour)
            part.at_step(step, scale, temperature)
        self._keep_norm = settings.keep_norm * (1 - done)
        return {"sparse_temperature": temperature, "sparse_scale": scale}

    def forward(self, run: Run) -> tuple[Losses, Features]:
        """What run, the objective's forward, gives, and beside its losses those of the method, (B,) float32 as they."""
        if self.config.method == "mask_tuning":
            return self._held_against_forgetting(run)
        losses, features = run()
        if (
            self.config.method == "two_four" and self.config.two_four.keep_norm
        ):  # at its end too: one name in every line
            like = next(iter(losses.values()))
            square = torch.stack([_weight(owner).float().square().sum() for owner, _ in self._trained]).sum()
            losses = {**losses, "kept_norm": (-self._keep_norm * square).expand_as(like)}
        return losses, features

    def describe(self) -> str:
        """In words, for the summary of a run."""
        words = {
            "composable": "a difference at chosen ones of",
            "mask_tuning": "a score for each of",
            "two_four": "a choice of two of every four of",
        }[self.config.method]
        return f"{self.config.method}: {words} {self._size:,} weights in {len(self._trained)} matrices; the others stay"

    def _held_against_forgetting(self, run: Run) -> tuple[Losses, Features]:
        settings = self.config.mask_tuning
        scored = [part for _, part in self._trained if isinstance(part, ScoredMask)]
        with _purpose(scored, TASK):
            losses, features = run()
        added = {}
        if settings.dropout and self._backbone.training:
            with _purpose(scored, FORGETTING):
                _, again = run()
            with _purpose(scored, FROZEN), torch.no_grad(), _in_eval(self._backbone):
                _, frozen = run()
            distance = (again.sequence.float() - frozen.sequence.float()).square().mean((1, 2))
            added["forgetting"] = settings.distill * distance
        if settings.penalty:
            squares = [(part.margins.float() + settings.threshold).square().sum() for part in scored]
            norm = settings.penalty * torch.stack(squares).sum().sqrt()
            added["score_norm"] = norm.expand_as(next(iter(losses.values())))
        return {**losses, **added}, features


def _parts(
    config: SparseConfig, state: dict[str, Tensor], seed: int, *, begins: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Which matrices something is trained about, by name, and what."""
    named = matrices(state)
    if config.method == "composable":
        chosen = _chosen(config, state) if begins else {}
        for name, tensor in named.items():
            keep = chosen.get(name, torch.zeros(tensor.shape, dtype=torch.bool))
            yield name, Difference(keep)
    elif config.method == "mask_tuning":
        settings = config.mask_tuning
        for name, tensor in named.items():
            if _ATTENTION.fullmatch(name):
                yield name, ScoredMask(tensor.shape, settings.first_score - settings.threshold, settings.dropout)
    else:
        two_four = config.two_four
        for index, (name, tensor) in enumerate(named.items()):
            if _BLOCK.fullmatch(name):
                yield name, TwoFour(tensor, two_four.prior, two_four.init_std, seed, index)


def _chosen(config: SparseConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where a difference may be, by matrix."""
    assert config.mask is not None  # init/sparse.py
    file = read_sparse(Path(config.mask))
    file.require_base(state, "init_from", f"sparse.mask={config.mask}")
    if file.kind == "kept":
        raise ConfigError(f"sparse.mask={config.mask} says which weights are kept, not where a difference is; give a "
                          "file of `lacuna sparse select`")  # fmt: skip
    return {name: part.chosen for name, part in file.parts.items()}


def _freeze(module: nn.Module) -> None:
    """Makes every trained parameter of module a buffer of its name."""
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.requires_grad:
                del owner._parameters[name]
                owner.register_buffer(name, parameter.detach())


def _untrained(backbone: nn.Module, objective: nn.Module) -> set[str]:
    """Names in the whole model's state dict of what is no parameter."""
    named = {"backbone": backbone, "objective": objective}
    return {
        f"{part}.{name}" for part, module in named.items()
        for name in set(module.state_dict()) - {name for name, _ in module.named_parameters()}
    }  # fmt: skip


def _weight(owner: nn.Module) -> Tensor:
    weight = owner.weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def _purpose(scored: list[ScoredMask], purpose: int) -> Iterator[None]:
    for part in scored:
        part.open(purpose)
    yield
    for part in scored:
        part.purpose = TASK


@contextmanager
def _in_eval(module: nn.Module) -> Iterator[None]:
    module.eval()
    yield
    module.train()
