"""Where the fp32 master weights, moments and gradients of each parameter lie, at every ZeRO stage.

The only file that knows DeepSpeed's internals. Whatever the stage, a rank holds some flat tensors that the optimizer
updates, and a parameter's values start .. start + numel lie somewhere in one of them: that is a Slice. The rest of the
engine (norm, average, checkpoints) speaks of slices only. tests/engine/test_slices.py fails loudly when an upgrade of
DeepSpeed moves anything used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn


@dataclass(frozen=True)
class Slice:
    """Values start .. start + numel of the flattened parameter called name, at offset in an optimizer's tensor."""

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    start: int
    numel: int
    flat: Tensor  # the fp32 tensor the optimizer updates
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """This slice's part, (numel,), of a tensor shaped as flat: flat itself, a moment, an average."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.numel]


class Layout:
    """How one stage keeps its state: `held` is what this rank updates, over `flats`, the optimizer's tensors."""

    kind: str
    replicated = False  # True: every rank holds everything, gradients included

    def __init__(self, optimizer: torch.optim.Optimizer, held: list[Slice]) -> None:
        self.optimizer = optimizer
        self.held = held
        self.flats = list({id(piece.flat): piece.flat for piece in held}.values())

    def owned(self, rank: int, world: int) -> list[Slice]:
        """Slices this rank writes: together the ranks' are every value once."""
        return list(_share(self.held, rank, world)) if self.replicated else self.held

    def gradients(self) -> list[Tensor]:
        """This rank's reduced gradients, between the last backward of a step and its update; zeros may pad them."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Makes the model's weights, on every rank, those of the masters."""
        raise NotImplementedError


class PlainLayout(Layout):
    """Stage 0 in fp32: the parameters are their own masters."""

    kind = "plain"
    replicated = True

    def __init__(self, optimizer: torch.optim.Optimizer, names: dict[int, str]) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        super().__init__(optimizer, [_whole(names[id(p)], p, p) for p in params])

    def gradients(self) -> list[Tensor]:
        return [flat.grad for flat in self.flats if flat.grad is not None]

    def refresh(self) -> None:
        return


class CopiedLayout(Layout):
    """Stage 0 in bf16: DeepSpeed keeps an fp32 copy of each parameter on every rank."""

    kind = "copied"
    replicated = True

    def __init__(self, wrapper: FP16_UnfusedOptimizer, names: dict[int, str]) -> None:
        self._pairs = [
            (low, high)
            for lows, highs in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
            for low, high in zip(lows, highs, strict=True)
        ]
        super().__init__(wrapper.optimizer, [_whole(names[id(low)], low, high) for low, high in self._pairs])

    def gradients(self) -> list[Tensor]:
        return [low.grad for low, _ in self._pairs if low.grad is not None]

    def refresh(self) -> None:
        for low, high in self._pairs:
            low.data.copy_(high.data)


class PartitionedLayout(Layout):
    """Stages 1 and 2: a group's parameters lie end to end, and each rank has one equal part of that line."""

    kind = "partitioned"

    def __init__(self, wrapper: Any, groups: list[list[nn.Parameter]], names: dict[int, str]) -> None:
        self._wrapper = wrapper
        held = []
        for index, params in enumerate(groups):
            flat = wrapper.optimizer.param_groups[index]["params"][0]
            for param in params:
                fragment = param._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's, None where no value is ours
                if fragment is not None:
                    low, high = fragment.lp_fragment_address, fragment.hp_fragment_address
                    assert low.numel == high.numel
                    name, shape = names[id(param)], tuple(param.shape)
                    held.append(Slice(name, shape, int(low.start), int(low.numel), flat, int(high.start)))
        super().__init__(wrapper.optimizer, held)
        self.flats = [group["params"][0] for group in wrapper.optimizer.param_groups]  # one may be all padding

    def gradients(self) -> list[Tensor]:
        if isinstance(self._wrapper, BF16_Optimizer):
            return list(self._wrapper.fp32_groups_gradient_flat_partition)
        return [g for pieces in self._wrapper.averaged_gradients.values() if pieces is not None for g in pieces]

    def refresh(self) -> None:
        self._wrapper.update_lp_params()


class ShardedLayout(Layout):
    """Stage 3: each parameter is cut into equal parts, one a rank; a sub-group's parts lie end to end."""

    kind = "sharded"

    def __init__(self, wrapper: DeepSpeedZeroOptimizer_Stage3, names: dict[int, str]) -> None:
        self._wrapper = wrapper
        held = []
        for params, flat in zip(wrapper.fp16_groups, wrapper.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for param in params:
                part = int(param.partition_numel())
                start = part * dist.get_rank(param.ds_process_group)
                numel = min(part, int(param.ds_numel) - start)
                if numel > 0:
                    held.append(Slice(names[id(param)], tuple(param.ds_shape), start, numel, flat, offset))
                offset += part
            assert offset == flat.numel()
        super().__init__(wrapper.optimizer, held)
        self.flats = list(wrapper.fp32_partitioned_groups_flat)

    def gradients(self) -> list[Tensor]:
        return [g for pieces in self._wrapper.averaged_gradients.values() if pieces is not None for g in pieces]

    def refresh(self) -> None:
        wrapper = self._wrapper
        wrapper._partition_all_parameters()
        for index in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(index)
        if wrapper.persistent_parameters:
            wrapper.persistent_parameters[0].all_gather(wrapper.persistent_parameters)


def find_layout(wrapper: Any, module: nn.Module) -> Layout:
    """The layout of what deepspeed.initialize made of our optimizer (engine.optimizer)."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if isinstance(wrapper, DeepSpeedZeroOptimizer_Stage3):
        return ShardedLayout(wrapper, names)
    if isinstance(wrapper, DeepSpeedZeroOptimizer):
        return PartitionedLayout(wrapper, wrapper.bit16_groups, names)
    if isinstance(wrapper, BF16_Optimizer):
        return PartitionedLayout(wrapper, wrapper.bf16_groups, names)
    if isinstance(wrapper, FP16_UnfusedOptimizer):
        return CopiedLayout(wrapper, names)
    assert isinstance(wrapper, torch.optim.AdamW), f"slices.py does not know DeepSpeed's {type(wrapper).__name__}"
    return PlainLayout(wrapper, names)


def _whole(name: str, parameter: Tensor, flat: Tensor) -> Slice:
    return Slice(name, tuple(parameter.shape), 0, parameter.numel(), flat, 0)


def _share(held: list[Slice], rank: int, world: int) -> Iterator[Slice]:
    """Rank's part of the line of all values, cut into world nearly equal runs."""
    total = sum(piece.numel for piece in held)
    first, last = rank * total // world, (rank + 1) * total // world
    at = 0
    for piece in held:
        begin, end = max(first - at, 0), min(last - at, piece.numel)
        if begin < end:
            yield replace(piece, start=piece.start + begin, numel=end - begin, offset=piece.offset + begin)
        at += piece.numel
