"""What a run is about to do, in plain words, before its first step."""

from __future__ import annotations

from pretrain.config import Config
from pretrain.data.sources import Sources
from pretrain.engine.engine import Engine
from pretrain.engine.run_state import RunState
from pretrain.engine.schedule import peak_rate, rate
from pretrain.init.start import Start
from pretrain.model import PretrainModel


def summary(
    config: Config, engine: Engine, sources: Sources, state: RunState, total_steps: int, began: Start | None = None
) -> str:
    """Samples, passes, effective batch, learning rate, and what was resumed or begun with: a few lines."""
    data, size = config.data, config.data.batch_size
    number = sources.train.num_samples
    seen = total_steps * size
    passes = seen / (number * data.crops_per_decode)
    crops = f" x {data.crops_per_decode} crops of each decoded image" if data.crops_per_decode > 1 else ""
    micro = size // (engine.world * config.engine.accumulation)
    peak = peak_rate(config.optim, size)
    height, width = data.image_size
    lines = [
        f"run       {config.name} in {config.run_dir}",
        f"data      {number:,} images in {len(sources.train.names)} shards, "
        f"fingerprint {sources.train.fingerprint[:12]}",
        f"length    {total_steps:,} steps = {seen:,} crops = {passes:.4g} passes{crops}, without replacement: each "
        f"image is seen {int(passes * data.crops_per_decode)} or {int(passes * data.crops_per_decode) + 1} times",
        f"batch     {size} images a step = {micro} x {config.engine.accumulation} accumulated x {engine.world} "
        f"processes, {height}x{width} px",
        f"rate      peak {peak:.3g} (base {config.optim.base_lr:g} x {size}/256), "
        f"now {rate(state.step, total_steps, config.optim, size):.3g}",
        f"engine    DeepSpeed ZeRO {config.engine.zero_stage}, {engine.precision} on {engine.device}",
    ]
    start = (
        f"step {state.step:,} of {total_steps:,}, from its checkpoint"
        if state.step
        else f"weights drawn from seed {config.seed}" + (" but for those below" if began else "")
    )
    lines += [f"note      {note}" for note in sources.train.notes()]
    if isinstance(engine.model, PretrainModel) and engine.model.sparse is not None:
        lines.append(f"sparse    {engine.model.sparse.describe()}")
    lines.append(f"start     {start}")
    if began is not None:
        lines.append(str(began))
    return "\n".join(lines)
