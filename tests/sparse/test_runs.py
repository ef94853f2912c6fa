"""Sparse runs through the one engine: select, train, save, apply; and one that was killed goes on as if it had not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pretrain.backbones.saved import load_encoder
from pretrain.engine.load import load_backbone
from pretrain.engine.published import encoder_of, read_newest
from pretrain.engine.stored import Reader, rank_files, read_weights
from pretrain.sparse.container import matrices, read_sparse
from tests import chaos
from tests.zygote import shared

CASE = "tests/sparse/rank.py:rank"
TINY = ["backbone.patch_size=8", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "backbone.drop_path=0.1"]
LENGTH = ["epochs=none", "data.image_size=32,32", "data.batch_size=8", "data.workers=0", "data.error_ratio=1"]
OFF = ["tracking.wandb=off", "tracking.panels_every=none", "evaluation.every_steps=none", "tracking.log_every=1"]
FINETUNE, MAE = "configs/finetune_cifar.py", "configs/mae_cifar.py"


def lacuna(*arguments: str, world: int = 1, wanted: int = 0, **more: int) -> str:
    outcomes = shared().run(CASE, world, {"arguments": list(arguments), **more})
    assert outcomes[0].code == wanted, "\n".join(outcome.output[-3000:] for outcome in outcomes)
    return outcomes[0].output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, a pretrained run "pre", its fine-tuning "full", and what that moved most: "mask"."""
    folder = tmp_path_factory.mktemp("sparse")
    pattern = chaos.make_shards(folder / "shards", images=60, per_shard=60)
    lacuna("train", MAE, "name=pre", "steps=2", *settings(folder, pattern))
    lacuna("train", FINETUNE, "name=full", "steps=2", f"init_from={folder}/pre", *settings(folder, pattern))
    said = lacuna("sparse", "select", f"{folder}/pre", f"{folder}/full", "--keep", "0.05", "-o", f"{folder}/mask")
    assert "positions by largest difference" in said and "5 %" in said
    return folder


def settings(folder: Path, pattern: str | None = None) -> list[str]:
    return [f"data.train={pattern or folder / 'shards/*.tar'}", f"runs_dir={folder}", *TINY, *LENGTH, *OFF]


def sparse(folder: Path, name: str, *more: str) -> list[str]:
    method = [f"sparse.mask={folder}/mask"] if not any("method" in text for text in more) else []
    return [f"name={name}", f"init_from={folder}/pre", "checkpoint.every_steps=2", *settings(folder), *method, *more]


def trace(run: Path) -> tuple[str, list[tuple[object, ...]]]:
    """A hash of all that the last checkpoint holds, and the lines of the log that must be the same."""
    newest = max((run / "ckpt").glob("0*"))
    digest = hashlib.sha256()
    assert Reader(newest).has("exp_avg")
    for path in rank_files(newest):
        with safe_open(path, "pt") as file:
            for key in sorted(file.keys()):
                digest.update(key.encode() + file.get_tensor(key).numpy().tobytes())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return digest.hexdigest(), [tuple(line.get(key) for key in chaos.SAME) for line in lines]


@pytest.mark.slow
def test_a_selection_is_trained_by_two_ranks_saved_and_applied_bit_for_bit(base: Path, tmp_path: Path) -> None:
    said = lacuna("train", FINETUNE, *sparse(base, "task", "steps=3", "engine.zero_stage=2"), world=2)
    assert "composable: a difference at chosen ones of" in said
    task, domain = tmp_path / "task", tmp_path / "domain"
    assert "difference by composable" in lacuna("sparse", "save", f"{base}/task", "-o", f"{task}")
    lacuna("train", MAE, *sparse(base, "domain", "steps=2", "init_parts=encoder"))
    lacuna("sparse", "save", f"{base}/domain", "-o", f"{domain}")
    file, mask, run = read_sparse(task), read_sparse(base / "mask"), read_newest(base / "task")
    start = encoder_of(read_newest(base / "pre").state)
    assert file.num_chosen == mask.num_chosen == round(0.05 * sum(t.numel() for t in matrices(start).values()))
    for name, tensor in encoder_of(run.state).items():
        chosen = mask.parts[name].chosen if name in mask.parts else torch.zeros(tensor.shape, dtype=torch.bool)
        assert torch.equal(tensor[~chosen], start[name][~chosen]), name
    assert torch.equal(file.dense["objective.head.weight"], run.state["objective.head.weight"])
    apply = ["sparse", "apply", f"{base}/pre", "-o"]
    lacuna(*apply, f"{tmp_path}/one", "--add", f"{task}")
    assert states_equal(load_encoder(tmp_path / "one"), load_backbone(base / "task").backbone)
    lacuna(*apply, f"{tmp_path}/ab", "--add", f"{task}", "--add", f"{domain}")
    lacuna(*apply, f"{tmp_path}/ba", "--add", f"{domain}", "--add", f"{task}")
    assert states_equal(load_encoder(tmp_path / "ab"), load_encoder(tmp_path / "ba"))
    assert not states_equal(load_encoder(tmp_path / "ab"), load_encoder(tmp_path / "one"))
    begun = [f"init_from={tmp_path}/ab", "name=next", "steps=1", *settings(base)]
    assert "encoder   " in lacuna("train", FINETUNE, *begun)
    said = lacuna("sparse", "apply", f"{base}/full", "-o", f"{tmp_path}/no", "--add", f"{task}", wanted=78)
    assert "belongs to an encoder whose matrices hash to" in said and not (tmp_path / "no").exists()
    assert "from      step 3 of run task" in lacuna("sparse", "show", f"{task}")
    assert "exists; give another --out" in lacuna("sparse", "save", f"{base}/task", "-o", f"{task}", wanted=78)
    assert "trained all of its weights" in lacuna("sparse", "save", f"{base}/pre", "-o", "x", wanted=78)


def states_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "more"),
    [
        (FINETUNE, ["engine.zero_stage=3", "optim.weight_decay=0.5"]),
        (FINETUNE, ["sparse.method=mask_tuning", "optim.base_lr=0.3", "engine.precision=bf16"]),
        (MAE, ["sparse.method=two_four", "sparse.train_rest=false", "engine.zero_stage=3", "tracking.log_every=5"]),
    ],
)
def test_a_sparse_run_that_was_killed_goes_on_bit_for_bit_and_needs_its_base_no_more(
    base: Path, config: str, more: list[str], tmp_path: Path
) -> None:
    for name in ("pre", "mask", "shards"):
        (tmp_path / name).symlink_to(base / name)
    arguments = ["train", config, *sparse(tmp_path, "run", "steps=5", *more)]
    lacuna(*arguments, "name=calm", world=2)
    outcomes = shared().run(CASE, 2, {"arguments": arguments, "stop_after": 3})
    assert all(outcome.code != 0 for outcome in outcomes)
    (tmp_path / "pre").unlink()
    (tmp_path / "mask").unlink()
    lacuna(*arguments, world=2)
    assert trace(tmp_path / "run") == trace(tmp_path / "calm")
    raw = read_weights(max((tmp_path / "run" / "ckpt").glob("0*")))
    assert any(".parametrizations." in name for name in raw)
    assert not any(".parametrizations." in name for name in read_newest(tmp_path / "run").state)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["sparse.mask=none", "init_from=x"], "needs sparse.mask, a file that"),
        (["sparse.mask=none/there", "init_from=x"], "sparse.mask=none/there does not exist"),
        (["sparse.mask=README.md"], "init_from=None with init_parts=all: sparse freezes an encoder"),
        (["sparse.mask=README.md", "init_from=x", "init_parts=fitting"], "which must come whole from somewhere"),
        (["sparse.method=two_four", "sparse.mask=x", "init_from=x"], "sparse.mask=x has no effect with sparse.method="),
        (
            ["sparse.method=two_four", "sparse.mask_tuning.dropout=0", "init_from=x"],
            "mask_tuning.dropout has no effect",
        ),
        (["sparse.method=two_four", "sparse.two_four.prior=-1", "init_from=x"], "two_four.prior=-1.0; it must be 0 or"),
        (["sparse.method=mask_tuning", "sparse.mask_tuning.first_score=0.001", "init_from=x"], "begin at zero"),
        (["sparse.method=mask_tuning", "engine.zero_stage=3", "init_from=x"], "engine.zero_stage=3 cuts them over"),
        (["sparse.method=mask_tuning", "engine.activation_checkpointing=true", "init_from=x"], "make that weight anew"),
        (["sparse.method=two-four"], "must be one of 'composable', 'mask_tuning', 'two_four'"),
    ],
)
def test_sparse_settings_that_cannot_be_meant_are_refused(more: list[str], why: str, tmp_path: Path) -> None:
    assert why in lacuna("train", FINETUNE, f"runs_dir={tmp_path}", *more, wanted=78)
    assert not list(tmp_path.iterdir())
