"""The run: open the data, build the model, resume, then one loop of steps until the last one or until asked to stop.

The state of a run is its step: data, augmentation, masks and dropout of a step follow from (seed, step). So the loop
below asks for step s, trains on it, and at the marks of the config writes lines, pictures, evaluations, checkpoints.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

from pretrain.around import Around
from pretrain.blame import explained
from pretrain.config import Config, to_json, write_config
from pretrain.continuity import settle
from pretrain.data.loader import ErrorBudget, Loader, build_loader
from pretrain.data.sources import Sources, open_sources
from pretrain.data.token_shards import check_tokens
from pretrain.engine import fsops
from pretrain.engine.agree import agree, barrier, gather_json
from pretrain.engine.checkpoint import Checkpoints
from pretrain.engine.distributed import init_distributed
from pretrain.engine.engine import Engine
from pretrain.engine.heartbeat import Heartbeat, stalls_of
from pretrain.engine.run_state import RunState
from pretrain.engine.schedule import rate
from pretrain.engine.watch import Watch
from pretrain.errors import LacunaError, SavedForLater
from pretrain.init.start import begin
from pretrain.length import steps_of, steps_per_epoch
from pretrain.mixing import Mixing
from pretrain.model import PretrainModel, build_model, grid_of, num_draws, num_labels, sparsify
from pretrain.observe import Observer
from pretrain.records import StepRecords
from pretrain.step import Recipe, train_step
from pretrain.summary import summary
from pretrain.tokenizers.frozen import frozen_tokenizer
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tracking.live import LiveLine
from pretrain.tracking.metrics import Tracker
from pretrain.types import BadSample, Batch


@dataclass
class Made:
    """What this attempt has done so far, also for whoever hears of its end."""

    steps: int = 0


@dataclass
class Run:
    """What the loop holds: everything that was opened for one attempt."""

    config: Config
    engine: Engine
    checkpoints: Checkpoints
    tracker: Tracker
    observer: Observer
    watch: Watch
    heart: Heartbeat
    stream: Loader
    budget: ErrorBudget
    records: StepRecords
    live: LiveLine | None
    state: RunState
    total_steps: int
    steps_per_epoch: float


def train(config: Config, around: Around) -> None:
    """Trains config's run to its last step. Raises SavedForLater when asked to stop before, and LacunaErrors."""
    made = Made()
    try:
        job = f"run {config.run_dir.absolute()}" + (f" of job {around.job}" if around.job else "")
        init_distributed(around.place, config.engine.collective_timeout_s, job=job)
        _run(_open(_settle(config, around), around), around, made)
    except (RuntimeError, OSError) as error:
        meaning = explained(error, config.run_dir / "ckpt", made.steps)
        if meaning is None:
            raise
        raise meaning from error


def _run(run: Run, around: Around, made: Made) -> None:
    """The loop, and the end of everything that was opened for it."""
    try:
        _loop(run, around, made)
    except LacunaError as error:
        run.tracker.event("stopped", reason=str(error), exit_code=error.exit_code, step=run.state.step)
        raise
    finally:
        if run.live is not None:
            run.live.close()
        run.stream.close()
        run.tracker.close()
        run.engine.close()
        run.heart.close()


def _settle(config: Config, around: Around) -> Config:
    """Rank 0 looks at the run directory first, since it may move or make it; the others find it settled."""
    is_main = around.place.rank == 0
    if not is_main:
        barrier()
    settled = settle(config, fresh=around.fresh and is_main, allow_change=around.allow_change, is_main=is_main)
    if is_main:
        barrier()
    return settled


def _open(config: Config, around: Around) -> Run:
    is_main = around.place.rank == 0
    sources = _sources(config, is_main)
    model = build_model(config)
    began = begin(model.backbone, model.objective, config)
    sparsify(model, config, begins=began is not None)
    engine = _engine(config, model, around)
    total_steps = steps_of(config, sources.train.num_samples)
    checkpoints = Checkpoints(config.run_dir, config.checkpoint, engine, job=around.job)
    state = checkpoints.restore(_first_state(config, sources), allow_change=around.allow_change)
    live = LiveLine(total_steps) if is_main else None
    tracker = _tracker(config, around, state, live)
    checkpoints.on_event, checkpoints.before_save = tracker.event, tracker.sync
    for stall in stalls_of(config.run_dir, checkpoints.attempt - 1) if is_main else ():
        tracker.event("stalled", attempt=checkpoints.attempt - 1, what=stall)
    tracker.event("started", step=state.step, world_size=engine.world, attempt=checkpoints.attempt, job=around.job)
    if began is not None:
        tracker.event("initialised", **began.facts)
    if is_main:
        around.say(summary(config, engine, sources, state, total_steps, began))
    return Run(
        config=config,
        engine=engine,
        checkpoints=checkpoints,
        tracker=tracker,
        observer=Observer(config, engine, sources, tracker),
        watch=Watch(config.engine.max_skipped, config.run_dir, engine),
        heart=_heart(config, engine, checkpoints.attempt),
        stream=_stream(config, engine, sources, state.step),
        budget=ErrorBudget(config.data.error_ratio, config.data.error_run),
        records=StepRecords(config, engine, sources.train.num_samples),
        live=live,
        state=replace(state, wandb_id=tracker.wandb_id),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch(config, sources.train.num_samples),
    )


def _engine(config: Config, model: PretrainModel, around: Around) -> Engine:
    return Engine(
        model, config.optim, config.engine, batch_size=config.data.batch_size, run_dir=config.run_dir,
        environment=around.place,
    )  # fmt: skip


def _heart(config: Config, engine: Engine, attempt: int) -> Heartbeat:
    limits = {"timeout_s": config.engine.collective_timeout_s, "reading_s": config.data.timeout_s}
    return Heartbeat(config.run_dir, engine.rank, attempt, **limits)


def _sources(config: Config, is_main: bool) -> Sources:
    """Shards that hold what the model reads: images, or the very tokens it is told of."""
    sources = open_sources(config.data, config.run_dir, is_main, barrier=barrier)
    stored = config.backbone.tokenizer if isinstance(config.backbone, TokenViTConfig) else None
    tokenizer = frozen_tokenizer(stored, config.data.in_chans) if stored is not None and stored.stored else None
    for shards in (sources.train, sources.val):
        if shards is not None:
            check_tokens(config.data, shards, tokenizer)
    return sources


def _first_state(config: Config, sources: Sources) -> RunState:
    data = config.data
    fingerprint = sources.train.fingerprint
    return RunState(0, fingerprint, config.seed, data.batch_size, lanes=data.lanes, block=data.block)


def _tracker(config: Config, around: Around, state: RunState, live: LiveLine | None) -> Tracker:
    """The run directory's files: config and environment of this attempt, then the lines."""
    is_main = around.place.rank == 0
    if is_main:
        write_config(config, config.run_dir / "config.json")
        fsops.replace(config.run_dir / "environment.json", json.dumps(around.snapshot, indent=2, default=str) + "\n")
    return Tracker(
        config.run_dir,
        to_json(config),
        config.tracking,
        is_main=is_main,
        resume_step=state.step,
        wandb_id=state.wandb_id,
        access=around.wandb,
        warn=None if live is None else live.say,
    )


def _stream(config: Config, engine: Engine, sources: Sources, start_step: int) -> Loader:
    return build_loader(
        sources.train,
        config.data,
        config.seed,
        rank=engine.rank,
        world=engine.world,
        accumulation=config.engine.accumulation,
        start_step=start_step,
        device=engine.device,
        num_classes=num_labels(config),
    )


def _loop(run: Run, around: Around, made: Made) -> None:
    config, engine = run.config, run.engine
    mixing = Mixing.of(config.data)
    recipe = Recipe(config.mask, grid_of(config), config.seed, run.steps_per_epoch, num_draws(config), mixing)
    run.observer.at(run.state.step, first=True)
    while run.state.step < run.total_steps:
        step = run.state.step
        began = time.perf_counter()
        run.heart.reading(step)
        batches = list(islice(run.stream, config.engine.accumulation))
        waited = time.perf_counter() - began
        run.heart.agreeing(step)
        agreed = agree(batches, around.stop.wanted(), run.checkpoints.written)
        lr = rate(step, run.total_steps, config.optim, config.data.batch_size)
        followed = cast("PretrainModel", engine.model).at_step(step, run.total_steps, run.steps_per_epoch)
        run.heart.training(step)
        result = train_step(engine, batches, recipe, step, agreed.num_valid, lr)
        run.heart.resting(step)
        made.steps += 1
        run.watch.note(step, batches, result.skipped)
        run.records.add(step, lr, result, agreed, waited, time.perf_counter() - began, followed)
        run.state = replace(run.state, step=step + 1, counters=_count(run.state.counters, agreed.num_bad))
        if agreed.num_bad:
            _note_bad(run, batches, agreed.num_bad)
        if agreed.written:
            run.checkpoints.finish()
        _marks(run, around, stopping=agreed.stop)
    if engine.rank == 0:
        around.say(f"done: {run.total_steps} steps in {config.run_dir}")


def _note_bad(run: Run, batches: list[Batch], num_bad: int) -> None:
    """Every rank's unusable samples into the ledger; ends the run where there are more than the budget bears."""
    step = run.state.step
    ranks = gather_json([{"step": step, **vars(bad)} for batch in batches for bad in batch.bad])
    entries = sorted((entry for rank in ranks for entry in rank), key=lambda entry: entry["position"])
    run.checkpoints.require_ours()
    run.tracker.ledger(entries)
    example = BadSample(**{key: value for key, value in entries[0].items() if key != "step"})
    run.budget.check(step - 1, run.config.data.batch_size, num_bad, example)


def _count(counters: dict[str, int], num_bad: int) -> dict[str, int]:
    return {**counters, "bad_samples": counters.get("bad_samples", 0) + num_bad}


def _marks(run: Run, around: Around, *, stopping: bool) -> None:
    """What is due after the step just made: lines, then pictures and evaluation, then the checkpoint."""
    config, step = run.config, run.state.step
    last = step == run.total_steps
    save = last or stopping or step % config.checkpoint.every_steps == 0
    if save or len(run.records) >= config.tracking.log_every:
        lines = run.records.flush()
        run.checkpoints.require_ours()
        run.tracker.log(lines)
        run.watch.check()
        if run.live is not None:
            run.live.update(lines[-1])
    if not stopping:
        run.observer.at(step, last=last)
    if save:
        if config.checkpoint.background and not (last or stopping):
            run.checkpoints.start(run.state)
        else:
            run.checkpoints.save(run.state, around.stop.remaining_s() if stopping else None)
    if stopping and not last:
        raise SavedForLater(_stopped(run, around.stop.reason or "by another process"))


def _stopped(run: Run, why: str) -> str:
    """What is said at the end of a run that was asked to stop."""
    step, stands = run.state.step, run.checkpoints.last_step
    if stands == step:
        kept = f"saved at step {step} of {run.total_steps}"
    elif stands is None:
        kept = f"step {step} of {run.total_steps} could not be saved, and no checkpoint was made before"
    else:
        kept = f"step {step} of {run.total_steps} could not be saved, and the checkpoint of step {stands} stands"
    return f"asked to stop ({why}); {kept}; run the same command again to go on"
