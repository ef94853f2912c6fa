"""`lacuna train` and `finetune`: find out where we are, check the config, then hand over to pretrain.train.

The order matters: everything that can be refused is refused before DeepSpeed is imported or anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from launch import environment as env
from launch.preempt import StopFlag
from pretrain.checks import check
from pretrain.config import Config, load_config


def start(
    path: str, overrides: Sequence[str], *, fresh: bool, allow_change: bool,
    require: Callable[[Config], None] | None = None,
) -> Config:  # fmt: skip
    """Trains the run of the config file at path to its end, and says what its config was. require may refuse that.
    Raises LacunaErrors, whose exit codes say what to do."""
    place = env.detect()
    config = load_config(path, overrides)
    if require is not None:
        require(config)
    check(config, place.world_size)
    stop = StopFlag(place.deadline_s, grace_s=config.checkpoint.grace_s)
    stop.listen()
    env.export(place, cuda=torch.cuda.is_available())
    if not env.threads_set():  # several processes on one machine share its cores; torch would give all of them to each
        torch.set_num_threads(max(1, env.cores() // env.local_world_size()))
    from pretrain.around import Around
    from pretrain.train import train

    if place.rank == 0:
        print(f"started by {place.describe()}", flush=True)
    around = Around(
        place=place,
        stop=stop,
        wandb=env.wandb_access(),
        snapshot=env.snapshot(place),
        fresh=fresh,
        allow_change=allow_change,
        job=place.job_id,
        say=_say,
    )
    try:
        train(config, around)
    finally:
        stop.ignore()
    return config


def _say(text: str) -> None:
    print(text, flush=True)
