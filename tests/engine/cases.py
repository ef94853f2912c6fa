"""What the engine's tests run in forked ranks, on a model of a few thousand parameters with the real call signature."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pretrain.engine import deepspeed_config
from pretrain.engine.agree import gather
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import Place
from pretrain.engine.engine import Engine, init_distributed
from pretrain.engine.run_state import RunState
from pretrain.engine.settings import CheckpointConfig, EngineConfig, OptimConfig
from pretrain.engine.stored import Reader, read_facts, read_weights
from pretrain.engine.watch import Watch
from pretrain.errors import NumericalError
from pretrain.types import Batch, Features, Losses, Target

deepspeed_config.PERSIST_BELOW = 100  # so that stage 3 does cut the tiny model's tensors
GLOBAL_BATCH, WIDTH = 12, 24
OPTIM = OptimConfig(base_lr=0.05, weight_decay=0.1, betas=(0.9, 0.95))


class Block(nn.Module):
    """Returns a dataclass from inside the model, as the ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)
        self.pos_embed = nn.Parameter(torch.randn(1, 5, WIDTH) * 0.02, requires_grad=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.checkpointing = False

    def forward(self, tokens: Tensor) -> Features:
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        hidden = tokens + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(tokens))))
        return Features(hidden, 1)


class TinyModel(nn.Module):
    """images (B, 4, WIDTH) float -> how far a linear head is from predicting the tokens back, (B,) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Block()
        self.head = nn.Linear(WIDTH, 7)
        self.register_buffer("scale", torch.tensor([1.0, 1.25]))

    def forward(self, images: Tensor, mask: Any, target: Target, rank: Tensor | None = None) -> tuple[Losses, Features]:
        features = self.backbone(images.to(self.head.weight.dtype))
        error = self.head(features.tokens).float() * self.scale[1] - target.value
        return {"pixel": error.square().mean((1, 2))}, features


@dataclass
class Job:
    """An engine, and a stream of global batches that depend on the step alone."""

    engine: Engine

    def step(self, step: int, lr: float = 0.01, poison: str | None = None) -> tuple[float, Tensor, Tensor]:
        """Trains on step; poison spoils "loss" or "gradient" here. This rank's share of the loss, norm, flag."""
        parts = self.engine.kept.accumulation
        share = 0.0
        for micro in range(parts):
            images, value = batch(step, self.engine.rank + micro * self.engine.world, self.engine.world * parts)
            losses, _ = self.engine(images, None, Target(value))
            loss = losses["pixel"].sum() / GLOBAL_BATCH
            share += float(loss.detach())
            loss = loss * (self.engine.world * parts)
            if poison == "loss":
                loss = loss + torch.tensor(float("nan"))
            elif poison == "gradient":
                loss.register_hook(lambda gradient: gradient * float("inf"))
            self.engine.backward(loss)
        norm, flag = self.engine.step(lr)
        return share, norm, flag


def batch(step: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
    """Rows part, part + parts, ... of the global batch of step."""
    rng = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(GLOBAL_BATCH, 4, WIDTH, generator=rng)
    value = torch.randn(GLOBAL_BATCH, 4, 7, generator=rng)
    return images[part::parts], value[part::parts]


def make(place: Place, stage: int, precision: str, run_dir: str | Path, **settings: Any) -> Job:
    """Joins the peers and builds the engine."""
    clip = settings.pop("clip_norm", None)
    init_distributed(place, 60)
    torch.manual_seed(0)
    optim = OptimConfig(**{**vars(OPTIM), "clip_norm": clip})
    config = EngineConfig(zero_stage=stage, precision=precision, **settings)  # type: ignore[arg-type]
    engine = Engine(TinyModel(), optim, config, batch_size=GLOBAL_BATCH, run_dir=Path(run_dir), environment=place)
    return Job(engine)


def total(engine: Engine, share: float) -> float:
    """The loss of the global batch: shares added in rank order."""
    return float(gather(torch.tensor([share], dtype=torch.float64)).sum())


def digest(weights: dict[str, Tensor]) -> str:
    """A hash of every bit of a state dict."""
    state = hashlib.sha256()
    for name, value in weights.items():
        state.update(name.encode())
        state.update(value.contiguous().numpy().tobytes())
    return state.hexdigest()


def losses(place: Place, run_dir: str, combos: list[list[Any]], steps: int = 4) -> dict[str, Any]:
    """Losses, norms and final weights of several (stage, precision, settings), in the same processes."""
    out = {}
    for stage, precision, settings in combos:
        job = make(place, stage, precision, run_dir, **settings)
        shares, norms = [], []
        for step in range(steps):
            share, norm, _ = job.step(step)
            shares.append(total(job.engine, share))
            norms.append(float(norm))
        ema = job.engine.weights(ema=True) if job.engine.kept.ema_decay else {}
        out[f"{stage} {precision}"] = {
            "losses": shares, "norms": norms, "weights": as_lists(job.engine.weights()), "ema": as_lists(ema),
        }  # fmt: skip
    return out


def reference(steps: int, clip_norm: float | None, ema_decay: float) -> dict[str, Any]:
    """The same training in a plain loop over whole batches: no DeepSpeed, no flags, a dense average."""
    torch.manual_seed(0)
    model = TinyModel()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = {name for name, p in named.items() if p.ndim <= 1 or name == "backbone.cls_token"}
    groups = [
        {"params": [p for name, p in named.items() if name not in plain], "weight_decay": OPTIM.weight_decay},
        {"params": [p for name, p in named.items() if name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=OPTIM.betas, eps=OPTIM.eps, foreach=False, fused=False)
    ema = {name: p.detach().clone() for name, p in named.items()}
    out: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(steps):
        images, value = batch(step, 0, 1)
        loss = model(images, None, Target(value))[0]["pixel"].sum() / GLOBAL_BATCH
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(named.values(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        kept = min(ema_decay, (1 + step + 1) / (10 + step + 1))
        ema = {name: kept * ema[name] + (1 - kept) * p.detach() for name, p in named.items()}
        out["losses"].append(float(loss.detach()))
        out["norms"].append(float(norm))
    return out | {"weights": as_lists(model.state_dict()), "ema": as_lists({**model.state_dict(), **ema})}


def as_lists(weights: dict[str, Tensor]) -> dict[str, list[float]]:
    """A state dict as JSON."""
    return {name: value.float().flatten().tolist() for name, value in weights.items()}


def train(place: Place, run_dir: str, combos: list[list[Any]], stop: int) -> dict[str, Any]:
    """Goes on from the newest checkpoint, if any, to step stop and saves: losses, digests of weights and average."""
    out = {}
    for stage, precision, settings in combos:
        folder = Path(run_dir) / f"{stage}-{precision}-{settings.get('accumulation', 1)}"
        job = make(place, stage, precision, folder, ema_decay=0.9, **settings)
        checkpoints = Checkpoints(folder, CheckpointConfig(), job.engine)
        state = checkpoints.restore(FRESH)
        start, shares = state.step, []
        for step in range(start, stop):
            shares.append(total(job.engine, job.step(step)[0]).hex())
        checkpoints.save(replace(FRESH, step=stop))
        out[folder.name] = {
            "start": start, "losses": shares, "weights": digest(job.engine.weights()),
            "ema": digest(job.engine.weights(ema=True)), "updates": job.engine.updates(),
        }  # fmt: skip
    return out


def convert(place: Place, source: str, target: str, combos: list[list[Any]]) -> dict[str, Any]:
    """Loads each source/NAME into (stage, precision) here, saves what is then held into target/NAME, trains a step."""
    out = {}
    for name, stage, precision in combos:
        job = make(place, stage, precision, target, ema_decay=0.9)
        job.engine.load_slices(Path(source) / name)
        (Path(target) / name).mkdir(parents=True, exist_ok=True)
        job.engine.save_slices(Path(target) / name)
        low = {} if stage == 3 else as_lists({n: p.detach() for n, p in job.engine.model.named_parameters()})
        groups = job.engine._layout.optimizer.param_groups
        share, _, _ = job.step(4)
        out[name] = {
            "loss": total(job.engine, share), "decay": sorted(group["weight_decay"] for group in groups), "low": low,
        }  # fmt: skip
    return out


def poisoned(place: Place, run_dir: str, combos: list[list[Any]]) -> dict[str, Any]:
    """Four steps with one of them spoiled on one rank, against the other three alone; a checkpoint is published right
    after. A combo is [stage, precision, poison, step, rank]."""
    out = {}
    for stage, precision, poison, bad_step, rank in combos:
        folder = Path(run_dir) / "-".join(map(str, (stage, precision, poison, bad_step, rank)))
        job = make(place, stage, precision, folder, ema_decay=0.9, clip_norm=0.5)
        checkpoints, flags = Checkpoints(folder, CheckpointConfig(), job.engine), []
        for step in range(4):
            spoiled = poison if step == bad_step and place.rank == rank else None
            flags.append(float(job.step(step, poison=spoiled)[2]))
            if step == bad_step:
                assert checkpoints.save(replace(FRESH, step=step + 1))
        calm = make(place, stage, precision, folder, ema_decay=0.9, clip_norm=0.5)
        for step in range(4):
            if step != bad_step:
                calm.step(step)
        pairs = [(e.weights(), e.weights(ema=True), e.updates()) for e in (job.engine, calm.engine)]
        stored = [t for path in folder.glob("ckpt/0*") for _, t in stored_tensors(path)]
        out[folder.name] = {
            "flags": flags, "updates": [pair[2] for pair in pairs], "weights": [digest(pair[0]) for pair in pairs],
            "ema": [digest(pair[1]) for pair in pairs], "values": sum(t.numel() for t in stored),
            "not_finite": sum(int((~t.isfinite()).sum()) for t in stored),
        }  # fmt: skip
    return out


def layouts(place: Place, run_dir: str, combos: list[list[Any]]) -> dict[str, Any]:
    """What each rank owns, and under which weight decay the optimizer will update it."""
    out = {}
    for stage, precision, settings in combos:
        engine = make(place, stage, precision, run_dir, **settings).engine
        layout = engine._layout
        exact = dict(TinyModel().state_dict()) if torch.manual_seed(0) else {}
        decay = {}
        for piece in layout.held:
            group = _group_of(layout, piece)
            decay[piece.name] = layout.optimizer.param_groups[group]["weight_decay"]
            want = exact[piece.name].flatten()[piece.start : piece.start + piece.numel]
            assert torch.equal(piece.of(piece.flat), want), f"{piece.name}: the master is not the initial value"
        owned = [[p.name, p.start, p.numel, list(p.shape)] for p in layout.owned(place.rank, place.world_size)]
        key = f"{stage} {precision} {settings.get('accumulation', 1)}"
        out[key] = {"owned": owned, "decay": decay, "kind": layout.kind}
    return out


def _group_of(layout: Any, piece: Any) -> int:
    if layout.kind != "sharded":
        return next(i for i, g in enumerate(layout.optimizer.param_groups) if any(p is piece.flat for p in g["params"]))
    index = next(i for i, flat in enumerate(layout.flats) if flat is piece.flat)
    return int(layout._wrapper.sub_group_to_group_id[index])


FRESH = RunState(step=0, fingerprint="f" * 64, seed=1, batch_size=GLOBAL_BATCH, lanes=32, block=64)


def plain_reference(place: Place, **kwargs: Any) -> dict[str, Any]:
    """reference, in a forked process."""
    return reference(**kwargs)


def digests(place: Place, directories: list[str]) -> list[dict[str, Any]]:
    """Per directory: kinds stored, updates, and a hash over whole tensors of every kind, however they were cut."""
    out = []
    for directory in map(Path, directories):
        facts, reader, state = read_facts(directory), Reader(directory), hashlib.sha256()
        kinds = [kind for kind in ("ema", "exp_avg", "exp_avg_sq", "fixed", "master") if reader.has(kind)]
        for kind, (name, shape) in product(kinds, sorted(facts.shapes.items())):
            if reader.holds(kind, name):
                values = torch.empty(math.prod(shape))
                reader.fill(kind, name, 0, values)
                state.update(f"{kind} {name} {shape}".encode() + values.numpy().tobytes())
        out.append({"kinds": kinds, "updates": facts.updates, "sha256": state.hexdigest()})
    return out


def rounded(place: Place, directories: list[str]) -> list[dict[str, list[float]]]:
    """Per directory: stored weights, rounded to bf16."""
    return [as_lists({n: v.bfloat16() for n, v in read_weights(Path(d)).items()}) for d in directories]


def stored_tensors(directory: Path) -> list[tuple[str, Tensor]]:
    """Every tensor in every rank's file."""
    return [item for path in sorted(directory.glob("*.safetensors")) for item in load_file(path).items()]


def watched(place: Place, run_dir: str, pattern: str) -> dict[str, Any]:
    """A step for each character, spoiled where it is 1, checked every fourth: when and how the run ended."""
    engine = make(place, 1, "fp32", run_dir).engine
    job, watch = Job(engine), Watch(3, Path(run_dir), engine)
    for step, spoiled in enumerate(pattern):
        flag = job.step(step, poison="loss" if spoiled == "1" else None)[2]
        rows = torch.arange(step * GLOBAL_BATCH + place.rank, (step + 1) * GLOBAL_BATCH, place.world_size)
        pixels = torch.zeros(len(rows), 3, 4, 4, dtype=torch.uint8)
        watch.note(step, [Batch(pixels, rows, torch.ones(len(rows)), rows, 0)], flag)
        if step % 4 == 3:
            try:
                watch.check()
            except NumericalError as error:
                return {"ended_at": step + 1, "text": str(error), "skipped": watch.skipped}
    return {"ended_at": None}
