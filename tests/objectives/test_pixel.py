"""pretrain/objectives/pixel.py: the loss is that of MAE written plainly, however few tokens are touched."""

import pytest
import torch
from einops import rearrange

from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.vit import ViTConfig
from pretrain.objectives.pixel import PixelMAEConfig
from pretrain.objectives.pixel_target import normalize_patches
from pretrain.patches import patchify
from tests.objectives import plain
from tests.objectives.plain import MEAN, STD

GRID = Grid(4, 6)


def model(vit=None, seed=0, **decoder):
    torch.manual_seed(seed)
    vit = vit or ViTConfig("tiny", patch_size=8, width=48, depth=3, heads=4)
    backbone = vit.build(GRID, 3, MEAN, STD)
    settings = {"decoder_width": 32, "decoder_depth": 3, "decoder_heads": 4, **decoder}
    objective = PixelMAEConfig(**settings).build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, objective


def inputs(batch=3, num_visible=6):
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, 32, 48), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(batch, 24, generator=rng), num_visible)


def plain_loss(backbone, objective, images, scores, num_visible):
    """MAE as its paper tells it: embed every patch, shuffle, encode, unshuffle with mask tokens, decode everything in
    raster order, mean squared error of all patches times the mask."""
    pixels, decoder, prefix = plain.normalized(images), objective.decoder, backbone.num_prefix
    x = plain.embed(backbone, pixels) + plain.positions(backbone)
    shuffle = scores.argsort(1, descending=True)
    unshuffle = shuffle.argsort(1)
    x = torch.stack([row[ids] for row, ids in zip(x, shuffle[:, :num_visible])])
    x = plain.with_prefix(backbone, x)
    x = decoder.embed(plain.transform(backbone.blocks, backbone.norm, x))
    hidden = decoder.mask_token.expand(len(x), 24 - num_visible, -1)
    patches = torch.cat([x[:, prefix:], hidden], 1)
    patches = torch.stack([row[ids] for row, ids in zip(patches, unshuffle)]) + decoder.pos_embed[:, 1:]
    x = plain.transform(decoder.blocks, decoder.norm, torch.cat([x[:, :prefix], patches], 1))
    prediction = decoder.head(x)[:, prefix:]
    target = plain.patches_of(pixels, 8)
    if objective.config.norm_pixels:
        target = plain.by_patch(target)
    mask = (unshuffle >= num_visible).float()
    return ((prediction - target).square().mean(-1) * mask).sum(1) / mask.sum(1)


VARIANTS = {
    "as published": {},
    "raw pixels": {"norm_pixels": False},
    "one decoder block": {"decoder_depth": 1},
    "registers": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, registers=3)},
    "no class token": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, class_token=False)},
    "learned positions": {"vit": ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4, positions="learned")},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_and_every_gradient_equal_the_plain_formulation(variant):
    backbone, objective = model(**variant)
    images, mask = inputs()
    scores = torch.empty(3, 24).scatter_(1, mask.order, torch.arange(24.0).flip(0).expand(3, -1))
    parameters = dict(backbone.named_parameters()) | dict(objective.named_parameters())
    want = plain_loss(backbone, objective, images, scores, 6)
    wanted = torch.autograd.grad(want.mean(), parameters.values())
    losses, features = objective(backbone, images, mask, objective.target(images))
    got = losses["pixel"]
    assert got.shape == (3,) and got.dtype == torch.float32
    assert (got - want).abs().max() <= 1e-5
    for name, mine, theirs in zip(parameters, torch.autograd.grad(got.mean(), parameters.values()), wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert features.tokens.shape == (3, 6, 48)


def test_bf16_weights_keep_the_loss_in_fp32_and_near():
    backbone, objective = model()
    images, mask = inputs()
    want = objective(backbone, images, mask, objective.target(images))[0]["pixel"]
    backbone.bfloat16()
    objective.bfloat16()
    got = objective(backbone, images, mask, objective.target(images))[0]["pixel"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)


def test_the_loss_does_not_see_how_the_mask_was_ordered_nor_other_images():
    backbone, objective = model()
    images, mask = inputs()
    losses = objective(backbone, images, mask, objective.target(images))[0]["pixel"]
    alone = [
        objective(backbone, images[row : row + 1], Mask.from_order(mask.order[row : row + 1], 6), None)[0]["pixel"]
        for row in range(3)
    ]
    torch.testing.assert_close(torch.cat(alone), losses)


def test_visible_pixels_are_no_part_of_the_target_and_hidden_ones_no_part_of_the_input():
    backbone, objective = model()
    images, mask = inputs()
    features = objective(backbone, images, mask, None)[1].sequence
    patches = patchify(images, 8)
    patches[mask.hidden] = 255 - patches[mask.hidden]
    changed = rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=4, p=8, q=8)
    assert torch.equal(objective(backbone, changed, mask, None)[1].sequence, features)


def test_normalised_patches_have_unit_unbiased_variance():
    patches = torch.randn(2, 5, 192) * 3 + 1
    got = normalize_patches(patches.clone())
    want = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    flat = normalize_patches(torch.full((1, 1, 192), 0.7))
    assert flat.abs().max() < 1e-3  # a patch of one colour has no direction to predict


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 9), (0.01, 1), (1.0, 18)])
def test_predict_ratio_decodes_a_random_share_of_the_hidden_patches(ratio, count):
    backbone, objective = model(predict_ratio=ratio)
    images, mask = inputs()
    seen = []
    objective.decoder.register_forward_hook(lambda module, args, out: seen.append((args[2], out)))
    for step in (1, 1, 2):
        objective(backbone, images, mask, None, generator(0, "predict", step))
    ids, prediction = seen[0]
    assert prediction.shape == (3, count, 192)
    assert all(set(ids[row].tolist()) <= set(mask.ids_mask[row].tolist()) for row in range(3))
    assert (ids.diff(dim=1) > 0).all()
    assert torch.equal(seen[0][0], seen[1][0])
    assert ratio != 0.5 or not torch.equal(seen[0][0], seen[2][0])


def test_predicted_patches_come_from_rows_of_a_global_draw_where_noise_is_given():
    backbone, objective = model(predict_ratio=0.4)
    images, mask = inputs()
    noise = torch.rand(3, 24)
    whole = objective(backbone, images, mask, None, noise)[0]["pixel"]
    part = Mask.from_order(mask.order[1:2], 6)
    torch.testing.assert_close(objective(backbone, images[1:2], part, None, noise[1:2])[0]["pixel"], whole[1:2])


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_a_reconstruction_pastes_visible_pixels_and_undoes_the_patch_statistics(norm_pixels):
    backbone, objective = model(norm_pixels=norm_pixels)
    images, mask = inputs()
    truth = objective.pixels(images, mask.ids_mask)
    perfect = objective.decoder.register_forward_hook(lambda *_: truth)
    got = objective.reconstruct(backbone, images, mask)
    assert got.shape == images.shape and got.dtype == torch.float32
    torch.testing.assert_close(got, images / 255, rtol=0, atol=2e-3 if norm_pixels else 1e-5)
    perfect.remove()
    got = objective.reconstruct(backbone, images, mask)
    assert 0 <= got.min() and got.max() <= 1 and not got.requires_grad
    visible, wanted = patchify(got, 8)[~mask.hidden], patchify(images / 255, 8)[~mask.hidden]
    torch.testing.assert_close(visible, wanted, rtol=0, atol=1e-6)
    assert (patchify(got, 8)[mask.hidden] - patchify(images / 255, 8)[mask.hidden]).abs().mean() > 0.05


def test_the_start_is_maes():
    torch.manual_seed(0)
    backbone = ViTConfig("small", depth=2).build(Grid(14, 14), 3, MEAN, STD)
    objective = PixelMAEConfig().build(backbone)
    weight = backbone.patch_embed.proj.weight
    bound = (6 / (weight.shape[0] + weight[0].numel())) ** 0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    qkv = backbone.blocks[0].attn.qkv
    assert qkv.weight.abs().max() <= (6 / sum(qkv.weight.shape)) ** 0.5 and not qkv.bias.any()
    for token in (backbone.cls_token, objective.decoder.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    assert not objective.decoder.head.bias.any()


def test_it_learns_what_a_patch_says_of_its_neighbours():
    backbone, objective = model(norm_pixels=False)
    ramp = torch.linspace(0, 255, 48).expand(8, 3, 32, -1) * torch.rand(8, 1, 1, 1, generator=generator(0)).clamp(0.3)
    images = ramp.to(torch.uint8)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.parameters()], lr=3e-3)
    history = []
    for step in range(60):
        mask = Mask.cut(torch.rand(8, 24, generator=generator(0, "mask", step)), 6)
        loss = objective(backbone, images, mask, None)[0]["pixel"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) / 5 < 0.1 * history[0]
