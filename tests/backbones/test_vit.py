"""pretrain/backbones/vit.py: the same function as timm's, on any subset of the patches."""

import pytest
import torch

from masking.mask import Grid, Mask
from pretrain.backbones.vit import ViTConfig
from pretrain.patches import normalize
from pretrain.timm_shim import import_timm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRID = Grid(2, 3)  # not square
VARIANTS = {
    "sincos": ViTConfig("tiny"),
    "learned": ViTConfig("tiny", positions="learned"),
    "no class token": ViTConfig("tiny", class_token=False),
    "registers": ViTConfig("tiny", registers=4),
    "registers, no class token, learned": ViTConfig("tiny", registers=2, class_token=False, positions="learned"),
    "layer scale": ViTConfig("tiny", layer_scale=0.1),
    "patch 8": ViTConfig("tiny", patch_size=8, width=96, depth=3, heads=3),
    "small": ViTConfig("small"),
    "base": ViTConfig("base"),
    "large, 3 blocks": ViTConfig("large", depth=3),
    "huge, 2 blocks": ViTConfig("huge", depth=2),
}
FULL = {"large": ViTConfig("large"), "huge": ViTConfig("huge")}


def built(config, grid=GRID, in_chans=3):
    """The encoder with every weight random, so that no term of the function is idle."""
    torch.manual_seed(0)
    vit = config.build(grid, in_chans, MEAN[:in_chans], STD[:in_chans])
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if name.endswith("norm.weight") or "norm" in name else 0.0, 0.1)
    return vit.eval()


def timms(vit, config):
    """timm's model of the same shape, sharing vit's weights; a strict load proves that every name is timm's."""
    timm = import_timm()
    with torch.device("meta"):
        width, depth, heads = config.dimensions()
        p = config.patch_size
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=(vit.grid.height * p, vit.grid.width * p), patch_size=p, in_chans=vit.in_chans, num_classes=0,
            embed_dim=width, depth=depth, num_heads=heads, init_values=config.layer_scale,
            class_token=config.class_token, reg_tokens=config.registers, no_embed_class=config.registers > 0,
            global_pool="token" if config.class_token else "avg", fc_norm=False,
            norm_layer=lambda width, **device: torch.nn.LayerNorm(width, eps=1e-6, **device),
        )  # fmt: skip
    model.load_state_dict(vit.state_dict(), strict=True, assign=True)
    return model.eval()


def images_of(vit, batch=2):
    side = vit.patch_size
    shape = (batch, vit.in_chans, vit.grid.height * side, vit.grid.width * side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_equal(config):
    vit = built(config)
    images = images_of(vit)
    theirs = timms(vit, config).forward_features(normalize(images, MEAN, STD))
    ours = vit(vit.embed(images)).sequence
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() <= 1e-5
    floats = vit(vit.embed(normalize(images, MEAN, STD))).sequence
    assert (floats - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_features_of_a_full_image_equal_timms(config):
    check_equal(config)


@pytest.mark.slow
@pytest.mark.parametrize("config", FULL.values(), ids=FULL.keys())
def test_features_of_the_large_models_equal_timms_at_full_depth(config):
    check_equal(config)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
def test_sizes_are_the_published_ones(size):
    timm = import_timm()
    name = "vit_huge_patch14_224" if size == "huge" else f"vit_{size}_patch16_224"
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
        ours = ViTConfig(size, patch_size=14 if size == "huge" else 16, positions="learned").build(
            Grid(16, 16) if size == "huge" else Grid(14, 14), 3, MEAN, STD
        )
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == shapes


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_an_export_loads_into_timms_plain_model_by_name(size):
    theirs = import_timm().create_model(f"vit_{size}_patch16_224", num_classes=0).eval()
    vit = built(ViTConfig(size, depth=None), Grid(14, 14))
    theirs.load_state_dict(vit.state_dict(), strict=True)
    images = images_of(vit, 1)
    want = theirs.forward_features(normalize(images, MEAN, STD))
    assert (vit(vit.embed(images)).sequence - want).abs().max() <= 1e-5


@torch.no_grad()
def test_layers_are_timms_intermediate_features():
    config = VARIANTS["registers"]
    vit = built(config)
    images = images_of(vit)
    model = timms(vit, config)
    features = vit(vit.embed(images), layers=(7, 2))
    for got, index in zip(features.layers, (7, 2), strict=True):
        (want,) = model.forward_intermediates(
            normalize(images, MEAN, STD), indices=[index], output_fmt="NLC", return_prefix_tokens=True,
            intermediates_only=True,
        )  # fmt: skip
        assert (got - torch.cat([want[1], want[0]], dim=1)).abs().max() <= 1e-5
    assert features.prefix.shape == (2, 5, 192) and features.tokens.shape == (2, 6, 192)


@torch.no_grad()
@pytest.mark.parametrize("in_chans", [1, 3])
def test_only_visible_patches_are_embedded_and_the_result_is_that_of_embedding_all(in_chans):
    vit = built(ViTConfig("tiny", depth=2), Grid(4, 5), in_chans)
    images = images_of(vit, 3)
    mask = Mask.cut(torch.rand(3, 20), 6)
    torch.testing.assert_close(vit.embed(images, mask.ids_keep), mask.keep(vit.embed(images)), rtol=0, atol=1e-6)
    changed = images.clone()
    side = vit.patch_size
    for row, patch in mask.hidden.nonzero().tolist():
        top, left = patch // 5 * side, patch % 5 * side
        changed[row, :, top : top + side, left : left + side] = 77
    assert torch.equal(vit.embed(images, mask.ids_keep), vit.embed(changed, mask.ids_keep))


@torch.no_grad()
def test_all_patches_by_their_ids_are_the_whole_grid():
    vit = built(VARIANTS["learned"])
    images = images_of(vit)
    ids = torch.arange(6).expand(2, -1)
    got = vit(vit.embed(images, ids), ids).sequence
    assert (got - vit(vit.embed(images)).sequence).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_the_normalisation_into_the_projection_is_exact_in_fp32_and_no_worse_in_bf16(dtype):
    vit = built(ViTConfig("base", depth=1), Grid(14, 14))
    images = images_of(vit, 4)
    weight, bias = vit.patch_embed.proj.weight.to(dtype).double(), vit.patch_embed.proj.bias.to(dtype).double()
    exact = normalize(images, MEAN, STD).double()
    want = torch.nn.functional.conv2d(exact, weight, bias, stride=16).flatten(2).mT
    vit.to(dtype)
    folded = (vit.embed(images).double() - want).norm() / want.norm()
    unfolded = (vit.embed(normalize(images, MEAN, STD).to(dtype)).double() - want).norm() / want.norm()
    if dtype == torch.float32:
        assert (vit.embed(images).double() - want).abs().max() < 1e-5
    else:
        assert folded <= 1.05 * unfolded  # equal, up to which of the two factors is rounded


def test_the_constants_of_normalisation_survive_a_cast_to_bf16():
    vit = ViTConfig("tiny", depth=1).build(GRID, 3, MEAN, STD)
    before = vit.patch_embed.pixels.scale.clone()
    assert torch.equal(vit.bfloat16().patch_embed.pixels.scale, before) and before.dtype == torch.float32


def test_gradients_of_the_folded_projection_are_those_of_the_plain_one():
    vit = built(ViTConfig("tiny", depth=1))
    images = images_of(vit)
    out = vit.embed(images)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    parameters = [vit.patch_embed.proj.weight, vit.patch_embed.proj.bias]
    folded = torch.autograd.grad(out, parameters, weights)
    plain = torch.autograd.grad(vit.embed(normalize(images, MEAN, STD)), parameters, weights)
    for got, want in zip(folded, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_checkpointing_changes_no_number_with_drop_path_on():
    vit = ViTConfig("tiny", depth=4, drop_path=0.3).build(GRID, 3, MEAN, STD).train()
    images = images_of(vit)
    results = []
    for vit.checkpointing in (False, True):
        torch.manual_seed(5)
        vit.zero_grad()
        out = vit(vit.embed(images)).sequence
        out.square().mean().backward()
        results.append([out.detach()] + [parameter.grad.clone() for parameter in vit.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_drop_path_rises_with_depth_and_rests_in_evaluation():
    vit = ViTConfig("tiny", depth=3, drop_path=0.4).build(GRID, 3, MEAN, STD)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    torch.manual_seed(0)
    out = vit.blocks[2].drop_path1(torch.ones(2000, 2, 3))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1 / 0.6]))
    assert out.mean().item() == pytest.approx(1, abs=0.06)
    assert torch.equal(vit.eval().blocks[2].drop_path1(torch.ones(9, 2, 3)), torch.ones(9, 2, 3))


def test_positions_and_tokens_are_named_for_the_optimizer():
    fixed = ViTConfig("tiny", depth=1, registers=1).build(GRID, 3, MEAN, STD)
    assert fixed.no_weight_decay() == {"cls_token", "reg_token"}
    assert "pos_embed" in fixed.state_dict() and "pos_embed" not in dict(fixed.named_parameters())
    learned = ViTConfig("tiny", depth=1, positions="learned").build(GRID, 3, MEAN, STD)
    assert learned.no_weight_decay() == {"cls_token", "pos_embed"}


def test_the_same_seed_builds_the_same_encoder():
    built_twice = []
    for _ in range(2):
        torch.manual_seed(3)
        built_twice.append(ViTConfig("tiny", depth=2).build(GRID, 3, MEAN, STD).state_dict())
    assert all(torch.equal(value, built_twice[1][name]) for name, value in built_twice[0].items())
