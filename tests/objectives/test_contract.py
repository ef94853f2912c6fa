"""What every objective owes: found by being in pretrain/objectives, tested without being named."""

import dataclasses
import importlib
import pkgutil

import pytest
import torch
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

from masking.attention import op
from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain import objectives
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.vit import ViTConfig
from pretrain.checks import check
from pretrain.config import check_types, load_config
from pretrain.flops import sizes_of
from pretrain.objectives.base import Drawing, Segmenting, Taught
from pretrain.patches import patchify
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.tokenizers.trained import ConvTokenizerConfig
from pretrain.types import Labels
from tests.objectives.plain import MEAN, STD
from tests.syntax import ROOT

GRID, PATCH, VISIBLE, BATCH = Grid(4, 6), 8, 9, 3
VIT = ViTConfig("tiny", patch_size=PATCH, width=48, depth=2, heads=4, registers=1)
ILLAMA = IllamaConfig("tiny", patch_size=PATCH, width=48, depth=2, heads=4)
PREFIX = dataclasses.replace(ILLAMA, mode="prefix", soft_mask=None)
CONV = ConvTokenizerConfig(patch_size=PATCH, width=16, blocks=1)
CODES, VALUES = (
    TokenViTConfig(TokenizerConfig(path, patch_size=PATCH), "tiny", dropout=0.0, width=48, depth=2, heads=4)
    for path in ("palette", "pixels")
)
ENCODERS = {None: VIT, "class_token": VIT, "questions": ILLAMA, "prefix": PREFIX, "tokenizer": CONV, "codes": CODES,
            "values": VALUES}  # fmt: skip
# Backward is less than twice forward: MAGE's tied table gets no gradient, nor does what goes into a diffusion head, nor
# the head of another that a joint sampler ends in.
LEAST = {"MAGEConfig": 0.95, "MARConfig": 0.98, "JointSamplerConfig": 0.83}
UNUSED = {"NextPatchConfig": {"backbone.cls_token"}}  # behind all patches, and nothing in the loss asks it


def all_configs():
    """Every objective's config with its defaults."""
    found = []
    for info in pkgutil.iter_modules(objectives.__path__):
        module = importlib.import_module(f"{objectives.__name__}.{info.name}")
        for value in vars(module).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.__name__ and hasattr(value, "build"):
                found.append(value())
    return found


CONFIGS = all_configs()
named = {"ids": lambda config: type(config).__name__}
every_objective = pytest.mark.parametrize("config", CONFIGS, **named)
masked = pytest.mark.parametrize("config", [config for config in CONFIGS if config.least_hidden is not None], **named)
reconstructing = pytest.mark.parametrize("config", [config for config in CONFIGS if config.reconstructs], **named)


def build(config, seed=0):
    """Encoder and objective; what starts at zero or one is moved away from it."""
    torch.manual_seed(seed)
    backbone = ENCODERS[config.asks].build(GRID, 3, MEAN, STD)
    objective = config.build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, objective


def inputs(config, seed=1):
    """Images, and a mask that hides what the objective wants hidden."""
    rng = generator(seed)
    images = torch.randint(0, 256, (BATCH, 3, 32, 48), dtype=torch.uint8, generator=rng)
    if config.least_hidden is None:
        return images, Mask.of_nothing(BATCH, GRID)
    return images, Mask.cut(torch.rand(BATCH, GRID.num_patches, generator=rng), VISIBLE)


def with_patches(images, chosen, change):
    """images with patches chosen (B, N) bool replaced by change of them."""
    patches = patchify(images, PATCH)
    patches[chosen] = change(patches[chosen])
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=GRID.height, p=PATCH, q=PATCH)


def target_of(objective, images):
    labels = torch.arange(len(images))
    maps = torch.randint(0, 100, (len(images), *images.shape[-2:]), dtype=torch.uint8, generator=generator(3))
    return objective.target(images, Labels(labels, labels + 1, torch.full((len(images),), 0.7), maps))


def numbers_for(config):
    """What the step would hand over: the same for everyone who asks."""
    if not isinstance(config, Drawing):
        return None
    return torch.rand(BATCH, config.num_draws(ENCODERS[config.asks], GRID), generator=generator(2))


def loss_of(backbone, objective, images, mask):
    numbers = numbers_for(objective.config)
    losses, _ = objective(backbone, images, mask, target_of(objective, images), numbers)
    return sum(objective.minimised(losses).values())


def parameters_of(backbone, objective):
    return {f"{name}.{key}": value for name, module in (("backbone", backbone), ("objective", objective))
            for key, value in module.named_parameters() if value.requires_grad}  # fmt: skip


def raw(config):
    """config with predictions in plain pixels, which a reconstruction shows as they are."""
    return dataclasses.replace(config, norm_pixels=False) if hasattr(config, "norm_pixels") else config


def test_the_published_ones_are_found():
    published = {
        "PixelMAEConfig", "SimMIMConfig", "MaskQueriesConfig", "NextPatchConfig", "MaskAlignConfig", "SupervisedConfig",
        "SegmentConfig",
    }  # fmt: skip
    assert published <= {type(config).__name__ for config in CONFIGS}


@every_objective
def test_a_config_is_a_frozen_value_that_passes_its_own_check(config):
    whole = load_config(ROOT / "configs" / "tiny_cpu.py")
    whole = dataclasses.replace(whole, objective=config, backbone=ENCODERS[config.asks])
    whole = dataclasses.replace(whole, mask=None if config.least_hidden is None else whole.mask)
    if isinstance(config, Segmenting):
        whole = dataclasses.replace(whole, data=dataclasses.replace(whole.data, train="a.tar", val="b.tar", maps="png"))
    check_types(whole)
    check(whole)
    assert isinstance(config.chooses, bool) and isinstance(config.gives_guidance, bool)
    assert config == type(config)() and hash(config) == hash(type(config)())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, None)


@every_objective
def test_losses_are_one_finite_number_an_image_and_features_those_of_visible_patches(config):
    backbone, objective = build(config)
    images, mask = inputs(config)
    target = target_of(objective, images)
    assert (target.guidance is not None) == config.gives_guidance
    losses, features = objective(backbone, images, mask, target)
    assert losses
    for values in losses.values():
        assert values.shape == (BATCH,) and values.dtype == torch.float32 and values.isfinite().all()
    asked = 0 if config.asks == "class_token" else mask.num_visible
    assert features.tokens.shape == (BATCH, asked, backbone.width)
    assert features.prefix.shape == (BATCH, backbone.num_prefix, backbone.width)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_parameter_gets_a_gradient(config, dtype):
    backbone, objective = (module.to(dtype) for module in build(config))
    loss_of(backbone, objective, *inputs(config)).mean().backward()
    for name, parameter in parameters_of(backbone, objective).items():
        used = name not in UNUSED.get(type(config).__name__, ())
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any() == used, name


@every_objective
def test_bf16_weights_keep_the_loss_in_fp32_and_near(config):
    backbone, objective = build(config)
    want = loss_of(backbone, objective, *inputs(config))
    got = loss_of(backbone.bfloat16(), objective.bfloat16(), *inputs(config))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)


@masked
def test_hidden_pixels_are_no_part_of_the_input_and_visible_ones_are(config):
    backbone, objective = build(raw(config))
    images, mask = inputs(config)
    seen = []
    for change in (images, with_patches(images, mask.hidden, lambda x: 255 - x),
                   with_patches(images, ~mask.hidden, lambda x: 255 - x)):  # fmt: skip
        features = objective(backbone, change, mask, target_of(objective, change))[1].sequence
        shown = features
        if config.reconstructs:
            shown = patchify(objective.reconstruct(backbone, change, mask), PATCH)[mask.hidden]
        seen.append((features, shown))
    assert torch.equal(seen[1][0], seen[0][0]) and torch.equal(seen[1][1], seen[0][1])
    assert not torch.equal(seen[2][0], seen[0][0])
    assert not torch.equal(seen[2][1], seen[0][1]) or config.asks == "codes"  # the likeliest code may stay the same


@every_objective
def test_an_image_of_weight_zero_leaves_no_trace_in_the_gradient(config):
    """The step weighs (B,) losses: nothing of one image may be in the loss of another."""
    backbone, objective = build(config)
    images, mask = inputs(config)
    other = images.clone()
    other[1] = 0  # what the loader hands over for a bad sample
    parameters = list(parameters_of(backbone, objective).values())
    weight = torch.tensor([0.5, 0.0, 0.5])
    found = [
        torch.autograd.grad((loss_of(backbone, objective, given, mask) * weight).sum(), parameters)
        for given in (images, other)
    ]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert not torch.equal(loss_of(backbone, objective, images, mask), loss_of(backbone, objective, other, mask))


@reconstructing
def test_a_reconstruction_is_an_image_with_its_visible_pixels_as_they_are(config):
    backbone, objective = build(config)
    images, mask = inputs(config)
    got = objective.reconstruct(backbone, images, mask)
    assert got.shape == images.shape and got.dtype == torch.float32 and not got.requires_grad
    assert 0 <= got.min() and got.max() <= 1
    have, want = patchify(got, PATCH), patchify(images / 255, PATCH)
    torch.testing.assert_close(have[~mask.hidden], want[~mask.hidden], rtol=0, atol=1e-6)
    assert (have[mask.hidden] - want[mask.hidden]).abs().mean() > 0.05


@every_objective
def test_checkpointing_changes_no_number(config):
    backbone, objective = build(config)
    found = []
    for on in (False, True):
        backbone.checkpointing = objective.checkpointing = on
        loss = loss_of(backbone, objective, *inputs(config)).mean()
        found.append(torch.autograd.grad(loss, list(parameters_of(backbone, objective).values())))
    assert objective.checkpointing is True
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@every_objective
def test_every_parameter_is_used_inside_the_module_that_owns_it(config):
    """ZeRO-3 gathers a module's own parameters when its forward starts: one touched from elsewhere would be empty."""
    backbone, objective = build(config)
    empty = torch.nn.Parameter(torch.empty(0))

    def gather(name, parameter):
        return lambda module, _: module._parameters.__setitem__(name, parameter)

    def release(name):
        return lambda module, _, out: module._parameters.__setitem__(name, empty)

    for module in (*backbone.modules(), *objective.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[name] = empty
            module.register_forward_pre_hook(gather(name, parameter))
            module.register_forward_hook(release(name))
    assert loss_of(backbone, objective, *inputs(config)).isfinite().all()


def attention_flops(q, k, v, *_, **__):
    """Both products of attention, from shapes (B, H, L, E)."""
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


COUNTED = {  # attention on a CPU, which torch's counter does not know; its backward makes four products
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, q, k, v, *_, **__: 2 * attention_flops(q, k, v),
    torch.ops.aten.baddbmm_: lambda _, left, right, *__, **___: 2 * left[0] * left[1] * left[2] * right[2],
}  # fmt: skip


@every_objective
def test_the_arithmetic_it_states_is_what_runs(config):
    """Matrix products of forward, and of backward at twice that, but for the patch projection's input. What runs may be
    a little more than the model needs: MAE's last block projects queries that nobody asks for."""
    backbone, objective = build(config)
    images, mask = inputs(config)
    encoder = ENCODERS[config.asks]
    sizes = sizes_of(encoder, GRID, 3, mask.num_visible)
    embed = sizes.embed_flops
    taught = config.target_flops(sizes) if isinstance(config, Taught) else 0
    branch = "matmul" if encoder in (ILLAMA, PREFIX) else "sdpa"
    with op.forced(branch), FlopCounterMode(display=False, custom_mapping=COUNTED) as forward:
        loss = loss_of(backbone, objective, images, mask)
    assert 1 <= forward.get_total_flops() / (BATCH * (config.forward_flops(sizes) + embed + taught)) < 1.01
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as backward:
        loss.sum().backward()
    least = LEAST.get(type(config).__name__, 1)
    assert least <= backward.get_total_flops() / (BATCH * (2 * config.forward_flops(sizes) + embed)) < 1.01
