"""The engine: DeepSpeed around the model; our AdamW, norm, clip, skip and average inside, the same at every ZeRO stage.

A step is `accumulation` times (forward, backward), then `step`. What backward expects: DeepSpeed divides the loss by
the number of micro-batches and averages gradients over ranks, so the gradient that is applied is that of

    sum over ranks and micro-batches of loss / (world * accumulation).

Number formats. fp32: all of it. bf16: weights, activations and the gradients of one micro-batch are bf16 and reduced
over ranks in bf16; master weights, moments and average are fp32. With accumulation > 1 micro-batches are added up in
fp32: by DeepSpeed at stages 1 to 3, by a hook here at stage 0 (rounded once to bf16 before the reduction).
"""

from __future__ import annotations

import io
import json
import logging
import resource
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from masking.mask import Mask
from pretrain.engine import fsops
from pretrain.engine.agree import gather_json
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.distributed import Place, device_of, init_distributed, limit_waiting, quiet
from pretrain.engine.ema import Ema
from pretrain.engine.fixed import FixedTensors
from pretrain.engine.hooks import open_features
from pretrain.engine.optim import MOMENTS, arm, build_optimizer, materialize_state, set_rate
from pretrain.engine.precision import Precision, resolve_precision
from pretrain.engine.settings import EngineConfig, OptimConfig
from pretrain.engine.slices import Slice, find_layout
from pretrain.engine.stored import EMA, FIXED, MASTER, Facts, Piece, Reader, rank_file, read_facts, write_pieces
from pretrain.errors import CheckpointError
from pretrain.types import Features, Losses, Target

__all__ = ["Engine", "init_distributed"]

_TOO_LARGE = 1e18  # a norm whose square leaves fp32 is no gradient: DeepSpeed's own check skips there too


class Engine:
    """The trained model of one process. All ranks call its public methods alike, for most are collective."""

    def __init__(
        self, model: nn.Module, optim: OptimConfig, engine: EngineConfig, *, batch_size: int, run_dir: Path,
        environment: Place,
    ) -> None:  # fmt: skip
        self.rank, self.world = environment.rank, environment.world_size
        self.device = device_of(environment)
        self.precision: Precision = resolve_precision(engine.precision)
        self.model = model
        self.optim = optim
        self.kept = engine
        self._order = list(model.state_dict())
        self._fixed = FixedTensors(model)
        exact = {name: p.detach().float().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        _set_checkpointing(model, engine.activation_checkpointing)
        config = deepspeed_config(engine, self.precision, batch_size, self.world)
        if self.rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "deepspeed.json").write_text(json.dumps(config, indent=2) + "\n")
        self._deepspeed = _initialize(model, optim, config)
        limit_waiting(engine.collective_timeout_s)
        self._fixed.restore_precision()
        self._layout = find_layout(self._deepspeed.optimizer, model)
        self._shapes = {name: list(value.shape) for name, value in exact.items()}
        self._prepare(exact)
        self._ema = Ema(engine.ema_decay, self._layout.flats) if engine.ema_decay is not None else None
        self._micro = 0
        self._bad = torch.zeros((), device=self.device)
        if self.precision == "bf16" and engine.zero_stage == 0 and engine.accumulation > 1:
            _accumulate_in_fp32(model, self._at_boundary)
        if engine.compile and self.device.type == "cuda":
            self._deepspeed.compile()

    def __call__(
        self, images: Tensor, mask: Mask, target: Target, noise: Tensor | None = None
    ) -> tuple[Losses, Features]:
        """The model's forward: losses, name -> (B,) float32, and the encoder's features."""
        output: tuple[Losses, Features] = self._deepspeed(images, mask, target, noise)
        return output

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of loss () to this step's; see the file's docstring for how it is scaled."""
        self._bad += (~torch.isfinite(loss.detach())).float()
        self._deepspeed.backward(loss)
        self._micro += 1
        if self._micro < self.kept.accumulation:
            self._deepspeed.step()  # no update: it only moves DeepSpeed's count of micro-batches

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """One update at rate lr after the last backward: norm of the gradient before clipping, and flag, () float32.

        The flag is 1 where a loss on any rank or the gradient was not finite; then weights, moments and average stay.
        """
        assert self._micro == self.kept.accumulation, f"{self._micro} micro-batches of {self.kept.accumulation}"
        optimizer = self._layout.optimizer
        set_rate(optimizer, lr)
        norm, flag = self._norm_and_flag()
        arm(optimizer, flag, self._clip_scale(norm, flag))
        self._deepspeed.step()
        if self._ema is not None:
            self._ema.update(self._updates(), flag)
        self._micro = 0
        self._bad = torch.zeros_like(self._bad)
        return norm, flag

    def weights(self, ema: bool = False) -> dict[str, Tensor]:
        """The model's whole state dict, float32 on the host, on every rank: the masters, or their average with ema."""
        if ema and self._ema is None:
            raise ValueError("no average of the weights is kept; set engine.ema_decay")
        owned = self._layout.owned(self.rank, self.world)
        mine = [self._values(piece, EMA if ema else MASTER).cpu() for piece in owned]
        index = gather_json([[piece.name, piece.start, piece.numel] for piece in owned])
        found = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        for source, entries in enumerate(index):
            size = sum(numel for _, _, numel in entries)
            values = torch.cat(mine) if source == self.rank and mine else torch.empty(size)
            if self.world > 1 and size:
                dist.broadcast(values, source)
            at = 0
            for name, start, numel in entries:
                found[name].view(-1)[start : start + numel] = values[at : at + numel]
                at += numel
        fixed = {name: value.clone() for name, value in self._fixed.values().items()}
        return {name: found[name] if name in found else fixed[name] for name in self._order}

    def save_slices(self, directory: Path) -> fsops.FileSum:
        """Writes the state this rank owns into directory; not collective. The sum of the file it wrote."""
        return write_pieces(rank_file(directory, self.rank), self._pieces(copy=False), self._facts())

    def snapshot(self) -> tuple[list[Piece], Facts]:
        """The state this rank owns, copied to the host: what save_slices would write, whatever is trained from here."""
        return list(self._pieces(copy=True)), self._facts()

    def load_slices(self, directory: Path) -> None:
        """Reads the state this rank needs from what any number of ranks at any stage saved into directory."""
        facts, reader = read_facts(directory), Reader(directory)
        self._require_same_model(facts, directory)
        self._fixed.load(reader, directory)
        with_ema = self._ema is not None and reader.has(EMA)
        for kind in (MASTER, *MOMENTS, *([EMA] if with_ema else [])):
            for piece in self._layout.held:
                values = torch.empty(piece.numel)
                reader.fill(kind, piece.name, piece.start, values)
                self._values(piece, kind).copy_(values)
        for flat in self._layout.flats:
            self._layout.optimizer.state[flat]["step"].fill_(float(facts.updates))
        self._layout.refresh()
        if self._ema is not None and not with_ema:
            self._ema.restart()

    def state_bytes(self) -> int:
        """Bytes of the file save_slices would write on this rank, but for its header."""
        owned = sum(piece.numel for piece in self._layout.owned(self.rank, self.world))
        return 4 * owned * len(self._kinds()) + 256 * len(self._layout.held) * len(self._kinds())

    def updates(self) -> int:
        """Updates the optimizer has made: steps that were not skipped. Waits for the device."""
        return int(self._updates())

    @property
    def layout_kind(self) -> str:
        """Equal for two engines whose ranks own the same slices."""
        return f"{self._layout.kind}-{self.world}"

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of every trained parameter."""
        return self._shapes

    def all_reduce_host(self, values: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """values, int64 on the host, reduced in place over ranks through gloo."""
        if self.world > 1:
            dist.all_reduce(values, op=op)
        return values

    def peak_memory_gb(self) -> float:
        """Most memory this process has held: of the GPU where there is one, else of the host."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def close(self) -> None:
        """Leaves the job."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _prepare(self, exact: dict[str, Tensor]) -> None:
        """Empty moments, and masters with the bits that rounding to bf16 took."""
        optimizer = self._layout.optimizer
        optimizer.state.clear()
        for flat in self._layout.flats:
            materialize_state(optimizer, flat)
        if self.precision == "bf16":
            for piece in self._layout.held:
                piece.of(piece.flat).copy_(exact[piece.name].view(-1)[piece.start : piece.start + piece.numel])
            self._layout.refresh()

    def _norm_and_flag(self) -> tuple[Tensor, Tensor]:
        gradients = self._layout.gradients()
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float32) if gradients else [torch.zeros_like(self._bad)]
        square = torch.stack(list(norms)).square().sum()
        if self._layout.replicated:
            square = square / self.world
        totals = torch.stack([square, self._bad])
        if self.world > 1:
            dist.all_reduce(totals)
        norm = totals[0].sqrt()
        return norm, (~(norm < _TOO_LARGE) | (totals[1] > 0)).float()  # NaN is not below anything

    def _clip_scale(self, norm: Tensor, flag: Tensor) -> Tensor:
        if self.optim.clip_norm is None:
            return torch.ones_like(norm)
        return torch.where(flag > 0, 1.0, torch.clamp(norm / self.optim.clip_norm, min=1.0))

    def _updates(self) -> Tensor:
        return self._layout.optimizer.state[self._layout.flats[0]]["step"]

    def _values(self, piece: Slice, kind: str) -> Tensor:
        if kind == MASTER:
            return piece.of(piece.flat)
        if kind == EMA:
            assert self._ema is not None
            return piece.of(self._ema.of(piece.flat))
        return piece.of(self._layout.optimizer.state[piece.flat][kind])

    def _kinds(self) -> tuple[str, ...]:
        return (MASTER, *MOMENTS) if self._ema is None else (MASTER, *MOMENTS, EMA)

    def _facts(self) -> Facts:
        return Facts(self._shapes | self._fixed.shapes(), self.updates())

    def _pieces(self, *, copy: bool) -> Iterator[Piece]:
        for piece in self._layout.owned(self.rank, self.world):
            for kind in self._kinds():
                yield Piece(kind, piece.name, piece.start, self._values(piece, kind).to("cpu", copy=copy))
        if self.rank == 0:
            for name, value in self._fixed.values().items():
                yield Piece(FIXED, name, 0, value.reshape(-1).to("cpu", copy=copy))

    def _at_boundary(self) -> bool:
        return self._micro == self.kept.accumulation - 1

    def _require_same_model(self, facts: Facts, directory: Path) -> None:
        here = self._shapes | self._fixed.shapes()
        for name in [*here, *facts.shapes]:
            if here.get(name) != facts.shapes.get(name):
                raise CheckpointError(
                    f"{name} has shape {here.get(name, 'none')} in this model and {facts.shapes.get(name, 'none')} in "
                    f"{directory}; use the config the run began with, or --fresh"
                )


def _initialize(model: nn.Module, optim: OptimConfig, config: dict[str, Any]) -> Any:
    quiet(logging.ERROR)
    open_features()
    with redirect_stdout(io.StringIO()):  # its bf16 optimizer prints what memory is in use
        wrapped, *_ = deepspeed.initialize(
            model=model, optimizer=build_optimizer(model, optim), config=config, dist_init_required=False
        )
    quiet(logging.WARNING)
    return wrapped


def _set_checkpointing(model: nn.Module, on: bool) -> None:
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            setattr(module, "checkpointing", on)  # noqa: B010  # a Module's attributes are typed as tensors


def _accumulate_in_fp32(model: nn.Module, at_boundary: Any) -> None:
    """Adds up bf16 micro-batches outside of .grad, which would round every sum."""
    sums: dict[nn.Parameter, Tensor] = {}

    def hook(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        total = sums.pop(parameter, None)
        total = parameter.grad.float() if total is None else total.add_(parameter.grad)
        if at_boundary():
            parameter.grad = total.to(parameter.dtype)
        else:
            sums[parameter] = total
            parameter.grad = None

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(hook)
