"""Layer-wise rates: whose layer is whose, and that the update of every parameter is made at its own."""

import dataclasses
import re

import pytest
import torch

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.checks import check
from pretrain.config import load_config
from pretrain.engine.layer_decay import layer_of, rate_scales
from pretrain.engine.optim import build_optimizer, set_rate
from pretrain.engine.settings import OptimConfig
from pretrain.errors import ConfigError
from pretrain.model import PretrainModel
from pretrain.objectives.supervised import SupervisedConfig
from tests.syntax import ROOT
from tests.zygote import shared

CASES = "tests/engine/layer_cases.py"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEPTH, DECAY = 3, 0.65
VIT = ViTConfig("tiny", patch_size=4, registers=2, positions="learned", width=32, depth=DEPTH, heads=2)
ILLAMA = IllamaConfig("tiny", patch_size=4, width=32, depth=DEPTH, heads=2)
FIRST = {"pos_embed", "cls_token", "reg_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def model_of(backbone) -> PretrainModel:
    encoder = backbone.build(Grid(4, 4), 3, MEAN, STD)
    return PretrainModel(encoder, SupervisedConfig(num_classes=5).build(encoder))


def mae_layer(name: str) -> int:
    """`get_layer_id_for_vit` of MAE's util/lr_decay.py, and of BEiT's, over timm's names."""
    if name in FIRST:
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else DEPTH + 1


@pytest.mark.parametrize("backbone", [VIT, ILLAMA])
def test_every_parameters_rate_is_that_of_maes_formula_by_its_name(backbone):
    scales = rate_scales(model_of(backbone), DECAY)
    assert {name.split(".")[2] for name in scales if name.startswith("backbone.blocks.")} == {"0", "1", "2"}
    for name, scale in scales.items():
        layer = mae_layer(name.removeprefix("backbone.").removeprefix("objective."))
        assert scale == pytest.approx(DECAY ** (DEPTH + 1 - layer)), name
    assert scales["objective.head.weight"] == scales["backbone.norm.weight"] == 1
    assert scales["backbone.cls_token"] == pytest.approx(0.65**4)


def test_the_layers_of_a_base_encoder_are_those_of_the_paper():
    assert [layer_of(f"backbone.{name}", 12) for name in ("pos_embed", "blocks.0.norm1.bias", "norm.bias")] == [
        0,
        1,
        13,
    ]
    assert layer_of("backbone.blocks.11.attn.qkv.weight", 12) == 12


def test_without_decay_there_are_two_groups_at_one_rate():
    optimizer = build_optimizer(model_of(VIT), OptimConfig())
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_a_step_is_that_of_plain_adamw_with_each_rate_written_by_hand():
    torch.manual_seed(0)
    ours = model_of(VIT)
    plain = model_of(VIT)
    plain.load_state_dict(ours.state_dict())
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    optimizer = build_optimizer(ours, OptimConfig(layer_decay=DECAY, weight_decay=0.1))
    groups = []
    for name, parameter in plain.named_parameters():
        name = name.removeprefix("backbone.")
        spared = parameter.ndim == 1 or name in ("pos_embed", "cls_token", "reg_token")
        lr = 0.01 * DECAY ** (DEPTH + 1 - mae_layer(name))
        groups.append({"params": [parameter], "lr": lr, "weight_decay": 0.0 if spared else 0.1})
    by_hand = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for _ in range(3):
        set_rate(optimizer, 0.01)
        optimizer.step()
        by_hand.step()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_an_encoder_without_blocks_is_refused():
    config = load_config(ROOT / "configs" / "tokenizer_fsq_cifar.py")
    check(config)
    with pytest.raises(ConfigError, match=r"optim.layer_decay=0.75 counts .* ConvTokenizerConfig has none; set"):
        check(dataclasses.replace(config, optim=dataclasses.replace(config.optim, layer_decay=0.75)))
    with pytest.raises(ConfigError, match=r"optim\.layer_decay=1\.5; it must be above 0 and at most 1"):
        check(load_config(ROOT / "configs" / "tiny_cpu.py", ["optim.layer_decay=1.5"]))


def test_every_stage_trains_as_one_process_does_resumes_to_the_bit_and_goes_on_at_another_world_size(tmp_path):
    def train(folder, world, stages, stop):
        kwargs = {"run_dir": str(tmp_path / folder), "stages": stages, "stop": stop}
        return shared().run(f"{CASES}:train", world, kwargs)[0].value

    stages = [0, 1, 2, 3]
    whole = train("whole", 2, stages, 4)
    train("parts", 2, stages, 2)
    assert train("parts", 2, stages, 4) == whole
    parts, (want,) = train("parts", 1, stages, 6), train("plain", 1, [0], 6).values()
    assert want["scales"] == [0.125, 0.25, 0.5, 1]
    for found in parts.values():
        assert found["scales"] == want["scales"]
        assert found["weights"].keys() == want["weights"].keys()
        for name, values in want["weights"].items():
            assert found["weights"][name] == pytest.approx(values, rel=1e-4, abs=2e-5), name


def test_a_checkpoint_of_another_decay_is_refused(tmp_path):
    shared().run(f"{CASES}:train", 1, {"run_dir": str(tmp_path), "stages": [1], "stop": 1})
    (outcome,) = shared().run(f"{CASES}:refused", 1, {"run_dir": str(tmp_path), "stage": 1})
    assert outcome.value.startswith(
        "optim.layer_decay was 0.5 in the checkpoint of step 1 and is 0.75 now; use the old"
    )
