"""Skipped steps are counted, kept for a replay, and end the run when there are too many in a row."""

import json

import torch
from safetensors.torch import load_file

from tests.zygote import shared

CASES = "tests/engine/cases.py"


def test_ten_skipped_steps_are_not_forgotten_by_a_good_one_and_their_batches_are_kept(tmp_path):
    pattern = "0110" + "1" * 3 + "0"
    for rank, outcome in enumerate(shared().run(f"{CASES}:watched", 2, {"run_dir": str(tmp_path), "pattern": pattern})):
        found = outcome.value
        assert found["skipped"] == 5
        assert found["ended_at"] == 8
        assert "3 steps in a row" in found["text"]
        folder = tmp_path / "skipped" / "step-0000001"
        facts = json.loads((folder / f"batch-rank{rank:05d}.json").read_text())
        assert facts == {"step": 1, "rank": rank, "world": 2, "micro": 1}
        batch = load_file(folder / f"batch-rank{rank:05d}.safetensors")
        assert torch.equal(batch["0.positions"], torch.arange(12 + rank, 24, 2))
        assert (tmp_path / "skipped" / "state" / f"rank{rank:05d}.safetensors").exists()
    assert not (tmp_path / "skipped" / "step-0000003").exists()


def test_skips_that_are_few_never_end_a_run(tmp_path):
    kwargs = {"run_dir": str(tmp_path), "pattern": "0110110110"}
    assert shared().run(f"{CASES}:watched", 1, kwargs)[0].value["ended_at"] is None
