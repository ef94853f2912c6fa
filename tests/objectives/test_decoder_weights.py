"""decoder_weights of pretrain/objectives/pixel.py: from MAE to a decoder that sees visible patches only."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from masking.attention.op import forced
from masking.attention.reference import weighted_attention_reference
from masking.attention.weighting import Weighting
from masking.mask import Grid, Mask
from masking.rng import generator
from pretrain.backbones.flops import Sizes
from pretrain.backbones.layers import Attention, LastKeys
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError
from pretrain.objectives.pixel import PixelMAEConfig, predicted_ids

GRID, VISIBLE, PREFIX, HIDDEN = Grid(5, 5), 7, 1, 18
DEPTH, WIDTH, HEADS = 3, 32, 4


def model(weights=(1.0,), **settings):
    torch.manual_seed(0)
    vit = ViTConfig("tiny", patch_size=8, width=48, depth=2, heads=4)
    backbone = vit.build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    sizes = {"decoder_width": WIDTH, "decoder_depth": DEPTH, "decoder_heads": HEADS}
    objective = PixelMAEConfig(**sizes, decoder_weights=weights, **settings).build(backbone)
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *objective.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return backbone, objective


def inputs(batch=3):
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (batch, 3, 40, 40), dtype=torch.uint8, generator=rng)
    return images, Mask.cut(torch.rand(batch, 25, generator=rng), VISIBLE)


def decode(weights, ids=None, dtype=torch.float64):
    """Predictions of the same decoder under other weights, for all hidden patches or those of ids."""
    decoder, mask = model(weights)[1].decoder.to(dtype), inputs()[1]
    sequence = torch.randn(3, PREFIX + VISIBLE, 48, generator=generator(2), dtype=torch.float64).to(dtype)
    return decoder(sequence, mask.ids_keep, mask.ids_mask if ids is None else ids)


def gradients(backbone, objective, rng=None):
    images, mask = inputs()
    parameters = dict(backbone.named_parameters()) | {f"objective.{k}": v for k, v in objective.named_parameters()}
    loss = objective(backbone, images, mask, objective.target(images), rng)[0]["pixel"]
    return loss.detach(), dict(zip(parameters, torch.autograd.grad(loss.mean(), parameters.values()), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0)])
def test_at_weight_1_every_bit_is_maes(weights, dtype, monkeypatch):
    assert PixelMAEConfig().decoder_weights == (1.0,)
    backbone, objective = (part.to(dtype) for part in model(weights))
    loss, grads = gradients(backbone, objective)

    def mae(sequence, ids_keep, ids_predict, treatment):
        assert treatment is None
        decoder = objective.decoder
        visible = decoder.embed(sequence) + decoder.pos_embed[0][torch.nn.functional.pad(ids_keep + 1, (1, 0))]
        x = torch.cat([visible, decoder.mask_token + decoder.pos_embed[0][ids_predict + 1]], dim=1)
        for block in decoder.blocks[:-1]:
            x = block(x)
        return decoder.head(decoder.norm(decoder.blocks[-1](x, ids_predict.shape[1])))

    monkeypatch.setattr(objective.decoder, "forward", mae)
    wanted, wanted_grads = gradients(backbone, objective)
    assert torch.equal(loss, wanted)
    assert all(torch.equal(grads[name], wanted_grads[name]) for name in wanted_grads)


def attend(layer, x, weight):
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.tensor([1.0] * (PREFIX + VISIBLE) + [weight] * HIDDEN, dtype=x.dtype)
    weighting = Weighting(key_bias=weights.log())
    return layer.proj(weighted_attention_reference(q, k, v, weighting).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("branch", ["sdpa", "matmul"])
@pytest.mark.parametrize("weights", [(0.0,), (0.3,), (1.0,), (0.0, 0.3, 1.0), (1.0, 0.3, 0.0)])
def test_the_decoder_is_the_weighted_reference_in_fp64_forward_and_backward(weights, branch):
    _, objective = model(weights)
    decoder, mask = objective.decoder.double(), inputs()[1]
    sequence = torch.randn(3, PREFIX + VISIBLE, 48, generator=generator(2), dtype=torch.float64, requires_grad=True)
    leaves = [sequence, *decoder.parameters()]
    visible = decoder.embed(sequence) + torch.cat(
        [torch.zeros(3, 1, WIDTH, dtype=torch.float64), decoder.pos_embed[0][mask.ids_keep + 1]], 1
    )
    x = torch.cat([visible, decoder.mask_token + decoder.pos_embed[0][mask.ids_mask + 1]], 1)
    for block, weight in zip(decoder.blocks, weights * (DEPTH // len(weights)), strict=True):
        x = x + attend(block.attn, block.norm1(x), weight)
        x = x + block.mlp(block.norm2(x))
    want = decoder.head(decoder.norm(x))[:, -HIDDEN:]
    probe = torch.randn(want.shape, generator=generator(3), dtype=torch.float64)
    with forced(branch):
        got = decoder(sequence, mask.ids_keep, mask.ids_mask)
        grads = torch.autograd.grad(got, leaves, probe)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(grads, torch.autograd.grad(want, leaves, probe), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


CHANGES = {
    "fewer are predicted": lambda ids: ids[:, [0, 3, 4]],
    "another one is predicted": lambda ids: torch.cat([ids[:, :5], ids[:, 9:10].expand(-1, 13)], 1),
    "one alone is predicted": lambda ids: ids[:, :1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_prediction_depends_on_other_hidden_patches_unless_every_weight_is_0(change, dtype):
    ids = inputs()[1].ids_mask
    first = lambda weight, ids: decode((weight,), ids, dtype)[:, 0]  # noqa: E731
    moved = {weight: (first(weight, change(ids)) - first(weight, ids)).norm() for weight in (0.0, 0.5, 1.0)}
    assert moved[0.0] <= (1e-12 if dtype == torch.float64 else 1e-5)
    assert min(moved[0.5], moved[1.0]) > 1e-2


@pytest.mark.parametrize(
    ("weights", "is_seen"), [((0.0,), False), ((0.5,), True), ((0.0, 0.0, 0.5), True), ((0.5, 0.0, 0.0), True)]
)
def test_a_prediction_has_no_gradient_to_other_hidden_patches_unless_a_weight_is_above_0(weights, is_seen):
    decoder, mask = model(weights)[1].decoder, inputs()[1]
    starts = []

    def cut(block, args):
        starts.append(args[0].detach().requires_grad_())
        return (*starts, *args[1:])

    decoder.blocks[0].register_forward_pre_hook(cut)
    sequence = torch.randn(3, PREFIX + VISIBLE, 48, generator=generator(2))
    prediction = decoder(sequence, mask.ids_keep, mask.ids_mask)
    (grad,) = torch.autograd.grad(prediction[:, 0].square().sum(), starts)
    assert grad[:, : PREFIX + VISIBLE + 1].any(dim=2).all()  # itself and the visible ones it does see
    assert grad[:, PREFIX + VISIBLE + 1 :].any() == is_seen


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_predict_ratio_changes_no_prediction_that_is_made_at_0(weight):
    noise, seen = torch.rand(3, 25, generator=generator(5)), []
    for ratio in (1.0, 0.3):
        backbone, objective = model((weight,), predict_ratio=ratio)
        objective.decoder.register_forward_hook(lambda _, args, out: seen.append((args[2], out)))
        objective(backbone, *inputs(), None, noise)
    (every, full), (some, part) = seen
    places = (every[:, None] == some[:, :, None]).int().argmax(2)
    wanted = full.gather(1, places[:, :, None].expand_as(part))
    assert part.shape[1] == 5
    assert ((part - wanted).abs().max() <= 1e-5) == (weight == 0)


def test_as_the_weight_goes_to_0_so_does_the_distance_to_0():
    limit = decode((0.0,))
    distances = [(decode((weight,)) - limit).norm().item() for weight in (1.0, 1e-1, 1e-3, 1e-5, 1e-7)]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] / distances[3] == pytest.approx(100, rel=0.05)  # in proportion to the weight
    assert distances[3] / distances[4] == pytest.approx(100, rel=0.05)


def test_each_block_has_its_own_weight():
    cases = [(0.0,), (1.0,), (0.5,), (0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (1.0, 1.0, 0.5)]
    outputs = [decode(weights) for weights in cases]
    assert all((one - two).abs().max() > 1e-2 for i, one in enumerate(outputs) for two in outputs[:i])
    assert torch.equal(decode((0.5, 0.5, 0.5)), outputs[2])


def decoder_flops(weights, predict_ratio=1.0):
    """Forward FLOPs of the decoder for one image, counted operator by operator, and as its config states them."""
    _, objective = model(weights, predict_ratio=predict_ratio)
    mask = inputs(1)[1]
    ids = predicted_ids(mask, predict_ratio, None)
    count = lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v)  # noqa: E731  # torch leaves CPUs out
    formulas = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        objective.decoder(torch.zeros(1, PREFIX + VISIBLE, 48), mask.ids_keep, ids)
    sizes = Sizes(25, VISIBLE, PREFIX, width=48, depth=2, num_values=192)
    return counter.get_total_flops(), objective.config.forward_flops(sizes) - sizes.encoder_flops(VISIBLE)


def test_hidden_keys_and_values_are_never_computed_at_0():
    for ratio in (1.0, 0.3):
        counted, stated = decoder_flops((0.0,), ratio)
        assert counted == stated
        counted, stated = decoder_flops((0.5, 1.0, 0.0), ratio)
        assert counted == stated
    saved = 4 * HIDDEN * WIDTH**2 + 4 * (PREFIX + VISIBLE + HIDDEN) * HIDDEN * WIDTH  # projecting them, looking at them
    (whole, stated), (part, stated_part) = decoder_flops((1.0,)), decoder_flops((0.0, 1.0, 1.0))
    assert whole - part == stated - stated_part == saved
    assert decoder_flops((1.0,)) == decoder_flops((0.5,))


def test_weights_of_keys_and_values_learn_from_visible_rows_alone_at_0():
    torch.manual_seed(0)
    layer, x, other = Attention(8, 2), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    with torch.no_grad():
        layer.qkv.weight[:8] = 0  # no query prefers a key, so what comes out depends on the keys' rows alone
        layer.qkv.bias[:8] = 0
    other[:, :5] = x[:, :5]

    def learn(rows, weight, num_queries):
        out = layer(rows, num_queries, LastKeys(4, weight))
        grad = torch.autograd.grad((out * torch.arange(1.0, 9)).square().sum(), layer.qkv.weight)[0]
        return grad[:8], grad[8:16], grad[16:]

    for num_queries in (None, 4):
        (_, keys, values), (_, keys2, values2) = learn(x, 0, num_queries), learn(other, 0, num_queries)
        assert values.abs().min() > 0 and torch.equal(values, values2)
        assert torch.equal(keys, keys2)
        assert not torch.equal(learn(x, 0.5, num_queries)[2], learn(other, 0.5, num_queries)[2])
        assert not torch.equal(learn(x, 0, num_queries)[0], learn(other, 0, num_queries)[0])  # hidden rows do ask


@pytest.mark.parametrize("weights", [(0.0,), (0.3,), (0.0, 0.3, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_number(weights, dtype):
    backbone, objective = (part.to(dtype) for part in model(weights))
    loss, grads = gradients(backbone, objective)
    backbone.checkpointing = objective.checkpointing = True
    again, grads2 = gradients(backbone, objective)
    assert torch.equal(loss, again) and all(torch.equal(grads[name], grads2[name]) for name in grads)


def test_torch_compile_takes_the_decoder_as_one_graph():
    decoder, mask = model((0.0, 0.3, 1.0))[1].decoder, inputs()[1]
    sequence = torch.randn(3, PREFIX + VISIBLE, 48, generator=generator(2))

    def learn():
        out = decoder(sequence, mask.ids_keep, mask.ids_mask)
        return out.detach(), torch.autograd.grad(out.square().mean(), list(decoder.parameters()))

    want, grads = learn()
    decoder.compile(backend="aot_eager", fullgraph=True)
    got, grads2 = learn()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads2, grads)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((-0.1,), r"objective\.decoder_weights=-0\.1.*from 0"),
        ((0.5, 1.5, 0.0), r"objective\.decoder_weights=0\.5,1\.5,0\.0.*to 1"),
        ((float("nan"),), "from 0"),
        ((0.5, 0.5), "has 2 weights and objective.decoder_depth=3"),
        ((), "has 0 weights"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused_in_words(weights, words):
    with pytest.raises(ConfigError, match=words) as refusal:
        PixelMAEConfig(decoder_depth=DEPTH, decoder_weights=weights).check()
    assert "\n" not in str(refusal.value)


def test_the_weights_change_no_parameter_and_no_start():
    states = []
    for weights in ((1.0,), (0.0,)):
        torch.manual_seed(0)
        backbone = ViTConfig("tiny", patch_size=8, width=48, depth=1, heads=4).build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
        config = PixelMAEConfig(decoder_width=WIDTH, decoder_depth=2, decoder_heads=HEADS, decoder_weights=weights)
        states.append(config.build(backbone).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("dtype", "checkpointing"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_a_tiny_model_learns_at_0(dtype, checkpointing):
    backbone, objective = (part.to(getattr(torch, dtype)) for part in model((0.0,), norm_pixels=False))
    backbone.checkpointing = objective.checkpointing = checkpointing
    ramp = torch.linspace(0, 255, 40).expand(8, 3, 40, -1) * torch.rand(8, 1, 1, 1, generator=generator(0)).clamp(0.3)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *objective.parameters()], lr=3e-3)
    history = []
    for step in range(60):
        mask = Mask.cut(torch.rand(8, 25, generator=generator(0, "mask", step)), VISIBLE)
        loss = objective(backbone, ramp.to(torch.uint8), mask, None)[0]["pixel"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) / 5 < 0.2 * history[0]
