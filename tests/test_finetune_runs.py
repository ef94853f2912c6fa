"""`lacuna finetune`: from a pretrained run to an accuracy, or to the sentence that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.checks import check
from pretrain.config import load_config
from pretrain.objectives.supervised import SupervisedConfig
from tests import chaos
from tests.syntax import ROOT
from tests.zygote import shared

CASE = "tests/finetune_cases.py:rank"
TINY = ["backbone.patch_size=8", "backbone.width=32", "backbone.depth=2", "backbone.heads=2"]
LENGTH = ["epochs=none", "data.image_size=32,32", "data.batch_size=8", "data.workers=0", "data.error_ratio=1"]
CONFIGS = sorted((ROOT / "configs").glob("finetune_*.py"))


def lacuna(*arguments: str, world: int = 1) -> tuple[int, str]:
    outcomes = shared().run(CASE, world, {"arguments": list(arguments)})
    return outcomes[0].code, outcomes[0].output


def test_a_pretrained_run_is_fine_tuned_by_two_ranks_and_ends_with_the_accuracy_of_every_image(tmp_path: Path) -> None:
    pattern, where = chaos.make_shards(tmp_path / "shards", images=120, per_shard=60), f"runs_dir={tmp_path}"
    data = [f"data.train={pattern}", where, *TINY, *LENGTH]
    code, said = lacuna("train", "configs/mae_cifar.py", "name=pre", "steps=2", *data)
    assert code == 0, said[-3000:]
    run = ["configs/finetune_cifar.py", "name=tuned", f"data.val={pattern}", "evaluation.max_images=20", *data]
    begin = f"init_from={tmp_path / 'pre'}"
    code, said = lacuna("finetune", *run, begin, "steps=3", "engine.zero_stage=2", world=2)
    assert code == 0 and "objective 0 of 2 tensors, fresh" in said, said[-3000:]
    found = json.loads((tmp_path / "tuned" / "evaluate-step-0000003.json").read_text())
    (result,) = found["results"].values()
    assert list(found["settings"]["methods"]) == ["head"] and 0 <= result["head"] <= 1
    assert result["val_images"] + result["bad_images"] == 120, "not the whole split"
    lines = [line.split() for line in said.splitlines()]
    assert lines[lines.index(["head"]) + 1] == ["step", "3", "(ema)", f"{result['head']:.4f}"]


def test_a_causal_encoder_is_fine_tuned_while_its_mask_is_lifted(tmp_path: Path) -> None:
    pattern = chaos.make_shards(tmp_path / "shards")
    causal = IllamaConfig("tiny", patch_size=8, width=32, depth=2, heads=2, mode="exact", soft_mask=None)
    torch.save(causal.build(Grid(4, 4), 3, (0.5,) * 3, (0.2,) * 3).state_dict(), tmp_path / "causal.pth")
    lifted = ["backbone.soft_mask.kind=linear", "backbone.soft_mask.cutoff=1", "backbone.soft_mask.start=0",
              "backbone.soft_mask.end=1", f"init_from={tmp_path / 'causal.pth'}", "name=tuned", "steps=5"]  # fmt: skip
    run = ["configs/finetune_illama_b16.py", "objective.num_classes=10", "data.rand_augment=none", "data.erase_prob=0"]
    data = [f"data.train={pattern}", f"data.val={pattern}", f"runs_dir={tmp_path}", *TINY, *LENGTH]
    code, said = lacuna("finetune", *run, *lifted, *data)
    assert code == 0 and "unmasked_blocks=none alpha=0 to 1, linear" in said, said[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert [line["alpha"] for line in lines] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["configs/finetune_cifar.py", "data.val=x"],
            "init_from=none: fine-tuning begins with pretrained",
        ),
        (
            ["configs/mae_cifar.py", "init_from=x", "data.val=x"],
            "PixelMAEConfig learns no classes, and lacuna",
        ),
        (["--from-scratch", "configs/finetune_cifar.py", "init_from=x"], "init_from=x and --from-scratch exclude each"),
        (
            ["--from-scratch", "configs/finetune_cifar.py"],
            "data.val=none: the accuracy at the end needs",
        ),
    ],
)
def test_what_is_no_fine_tuning_is_refused_before_anything_is_made(
    arguments: list[str], why: str, tmp_path: Path
) -> None:
    code, said = lacuna("finetune", *arguments, f"runs_dir={tmp_path}")
    assert code == 78 and why in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_a_config_that_stands(path: Path) -> None:
    config = load_config(path, ["init_from=timm:vit_base_patch16_224"])
    check(config)
    assert config.name == path.stem and config.optim.layer_decay is not None
    assert config.init_from is not None and config.objective.num_classes in (10, 1000)


@pytest.mark.parametrize(
    ("name", "base_lr", "layer_decay", "drop_path", "epochs"),
    [("finetune_vitb16", 5e-4, 0.65, 0.1, 100), ("finetune_vitl16", 1e-3, 0.75, 0.2, 50)],
)
def test_maes_recipes_are_those_of_its_authors_code(
    name: str, base_lr: float, layer_decay: float, drop_path: float, epochs: int
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.py")
    optim, data = config.optim, config.data
    assert (optim.base_lr, optim.layer_decay, optim.weight_decay, optim.betas) == (
        base_lr,
        layer_decay,
        0.05,
        (0.9, 0.999),
    )
    assert isinstance(config.backbone, ViTConfig) and config.backbone.drop_path == drop_path
    assert (data.batch_size, config.epochs, optim.warmup * epochs) == (1024, epochs, pytest.approx(5))
    assert base_lr * data.batch_size / 256 * optim.final_lr_ratio == pytest.approx(1e-6)
    assert (data.mixup, data.cutmix, data.erase_prob, data.rand_augment) == (0.8, 1.0, 0.25, "rand-m9-mstd0.5-inc1")


@pytest.mark.parametrize("kind", [ViTConfig, IllamaConfig])
def test_the_norm_of_the_mean_is_what_the_head_reads_as_in_maes_fc_norm(kind: type) -> None:
    torch.manual_seed(0)
    backbone = kind("tiny", patch_size=4, width=32, depth=2, heads=2).build(Grid(4, 4), 3, (0.5,) * 3, (0.2,) * 3)
    objective = SupervisedConfig(num_classes=5, pool="norm_of_mean").build(backbone)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    got = objective.classify(backbone, images)
    norm, backbone.norm = backbone.norm, torch.nn.Identity()
    raw = backbone(backbone.embed(images)).tokens
    torch.testing.assert_close(got, objective.head(norm(raw.mean(1))))
    assert not torch.allclose(got, objective.head(norm(raw).mean(1)))
