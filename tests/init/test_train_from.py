"""Continued pretraining as a user meets it: `lacuna train ... init_from=`, in real processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from pretrain.engine.published import encoder_of, read_newest
from tests import chaos
from tests.zygote import shared


def _train(run_dir: Path, pattern: str, *more: str, steps: int, world: int = 1) -> str:
    settings = [*chaos.overrides(run_dir, pattern, steps=steps, stage=1, workers=0), *more]
    outcomes = shared().run(chaos.CASE, world, {"overrides": settings}, timeout_s=120)
    assert [outcome.code for outcome in outcomes] == [0] * world, outcomes[0].output[-3000:]
    return outcomes[0].output


def test_a_run_begins_where_another_ended_and_goes_on_without_it(tmp_path: Path) -> None:
    pattern = chaos.make_shards(tmp_path / "shards")
    first, second = tmp_path / "first", tmp_path / "second"
    _train(first, pattern, steps=3)
    still = (f"init_from={first}", "init_parts=encoder", "optim.base_lr=1e-12", "optim.weight_decay=0", "seed=5")
    output = _train(second, pattern, *still, steps=2, world=2)
    assert "tensors from" in output and "weights drawn from seed 5 but for those below" in output
    theirs, ours = read_newest(first, "ema").state, read_newest(second, "model").state
    for name, tensor in encoder_of(ours).items():
        assert torch.allclose(tensor, encoder_of(theirs)[name], rtol=0, atol=1e-6), name
    decoder = [name for name in ours if name.startswith("objective.") and name.endswith("qkv.weight")]
    assert decoder and not any(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in decoder), "it is fresh"
    events = [json.loads(line) for line in (second / "journal.jsonl").read_text().splitlines()]
    (begun,) = [event for event in events if event["event"] == "initialised"]
    assert begun["positions"].endswith("as they are") and begun["objective"].startswith("0 of ")
    shutil.rmtree(first)
    output = _train(second, pattern, *still, steps=2)
    assert "from its checkpoint" in output and "tensors from" not in output
