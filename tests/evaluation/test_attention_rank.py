"""Maps of attention as formulas give them, their ranks as worked by hand, and a collapse that is seen."""

import json

import pytest
import torch
from einops import rearrange

from masking.mask import Grid
from pretrain.backbones.illama import IllamaConfig
from pretrain.backbones.rotary import rotate
from pretrain.backbones.vit import ViTConfig
from pretrain.errors import ConfigError, DataError, NumericalError
from pretrain.evaluation.attention_maps import attention_map, on_attention
from pretrain.evaluation.attention_rank import attention_rank, baselines, rank_of, token_collapse

GRID, LENGTH = Grid(4, 4), 17
EACH = pytest.mark.parametrize("kind", ["vit", "registers", "paper", "exact", "first_seen"])


def build(kind="vit", alpha=0.3, **options):
    settings = {"size": "tiny", "width": 48, "depth": 3, "heads": 4, "patch_size": 8, **options}
    more = {
        "vit": {}, "registers": {"registers": 2}, "paper": {}, "exact": {"mode": "exact", "soft_mask": None},
        "first_seen": {"class_token": "first_seen"}, "prefix": {"mode": "prefix", "soft_mask": None},
    }[kind]  # fmt: skip
    config = (ViTConfig if kind in ("vit", "registers") else IllamaConfig)(**settings, **more)
    torch.manual_seed(0)
    encoder = config.build(GRID, 3, (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    if kind in ("paper", "first_seen"):
        encoder.alpha.fill_(alpha)
    return encoder


def batches(*sizes):
    rng = torch.Generator().manual_seed(3)
    return [(torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=rng), None) for n in sizes]


def asked(encoder, images):
    """(module, inputs, output) of each block's attention."""
    found, hooks = [], []
    for block in encoder.blocks:
        hooks.append(block.attn.register_forward_hook(lambda *call: found.append(call)))
    with torch.no_grad():
        encoder.eval()(encoder.embed(images))
    for hook in hooks:
        hook.remove()
    return found


def softmax_of(module, inputs):
    """softmax(q k^T / sqrt(E)) and q k^T / sqrt(E), (B, H, L, L), written out."""
    qkv = rearrange(module.qkv(inputs[0]), "b l (three h e) -> b l three h e", three=3, h=module.num_heads)
    qkv = rotate(qkv, inputs[1]) if len(inputs) > 1 and torch.is_tensor(inputs[1]) else qkv
    scores = torch.einsum("blhe,bshe->bhls", qkv[:, :, 0], qkv[:, :, 1]) / qkv.shape[-1] ** 0.5
    return scores.softmax(-1), scores


def test_ranks_of_the_papers_length_are_those_of_the_specification():
    assert baselines(197) == {"identity": 158, "uniform lower triangle": 56, "uniform": 1}


def test_the_rank_of_a_map_made_by_hand():
    four = torch.diag(torch.tensor([1.0, 4.0, 2.0, 3.0]))  # 4 and 3 of 10 are too few, 4, 3 and 2 are enough
    turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    assert rank_of(four) == rank_of(turned @ four) == 3
    assert rank_of(torch.stack([four, torch.eye(4), torch.ones(4, 4)])).tolist() == [3, 4, 1]
    assert rank_of(torch.eye(5)) == 4  # 0.8 is reached, not passed


@EACH
def test_a_map_times_the_values_is_what_the_block_makes(kind):
    for module, inputs, output in asked(build(kind), batches(2)[0][0]):
        maps = attention_map(module, inputs)
        values = rearrange(module.qkv(inputs[0]), "b l (three h e) -> b l three h e", three=3, h=4)[:, :, 2]
        mixed = rearrange(maps @ rearrange(values, "b l h e -> b h l e"), "b h l e -> b l (h e)")
        torch.testing.assert_close(module.proj(mixed), output, rtol=1e-4, atol=2e-5)


def test_the_map_of_a_vit_is_its_softmax():
    for module, inputs, _ in asked(build(), batches(2)[0][0]):
        torch.testing.assert_close(attention_map(module, inputs), softmax_of(module, inputs)[0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_map_under_a_soft_mask_is_softmax_times_mask(alpha):
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for module, inputs, _ in asked(build("paper", alpha), batches(2)[0][0]):
        wanted = torch.where(later, alpha, 1.0) * softmax_of(module, inputs)[0]
        torch.testing.assert_close(attention_map(module, inputs), wanted)


def test_an_exact_map_is_a_causal_softmax():
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for module, inputs, _ in asked(build("exact"), batches(2)[0][0]):
        scores = softmax_of(module, inputs)[1]
        torch.testing.assert_close(attention_map(module, inputs), scores.masked_fill(later, -torch.inf).softmax(-1))


def test_what_the_mask_alone_makes_stands_beside_each_block():
    triangle, depth = baselines(LENGTH)["uniform lower triangle"], 3
    assert 1 < triangle < baselines(LENGTH)["identity"]

    def alone(kind, alpha=0.3, **options):
        blocks = attention_rank(build(kind, alpha, **options), batches(1))["blocks"]
        return [block["mask_rank"] for block in blocks], [block["mask_row_mass"] for block in blocks]

    assert alone("vit") == ([1] * depth, pytest.approx([1.0] * depth))
    assert alone("prefix") == ([1] * depth, pytest.approx([1.0] * depth))  # nothing is masked without a prefix
    half = (LENGTH + 1) / (2 * LENGTH)
    assert alone("paper", 0.0) == ([triangle] * depth, pytest.approx([half] * depth))
    assert alone("paper", 1.0)[0] == [1] * depth
    assert alone("paper", 0.5)[1] == pytest.approx([(1 + half) / 2] * depth)  # alpha + (1 - alpha) r
    assert alone("paper", 0.0, unmasked_blocks=(0,))[0] == [1, triangle, triangle]
    causal = torch.ones(LENGTH, LENGTH).tril()
    assert alone("exact")[0] == [int(rank_of(causal / causal.sum(1, keepdim=True)))] * depth


@EACH
@torch.no_grad()
def test_figures_are_means_over_all_images_whatever_the_batches(kind):
    whole, images = build(kind), torch.cat([images for images, _ in batches(2, 3)])
    result = attention_rank(whole, batches(2, 3))
    assert (result["images"], result["length"]) == (5, LENGTH + 2 * (kind == "registers"))
    for block, (module, inputs, _) in zip(result["blocks"], asked(whole, images), strict=True):
        maps = attention_map(module, inputs)
        assert block["rank"] == pytest.approx(rank_of(maps).double().mean(0).tolist())
        rows = maps.sum(-1).mean((0, 1))
        assert [block["row_mass"], block["row_mass_least"]] == pytest.approx([float(rows.mean()), float(rows.min())])
    assert json.loads(json.dumps(result)) == result


def test_the_encoder_is_as_it_was():
    encoder = build("paper", drop_path=0.5).train()
    images = batches(2)[0][0]
    attention_rank(encoder, batches(2))
    assert encoder.training and all(not part._forward_hooks and not part._forward_pre_hooks
                                    for part in encoder.modules())  # fmt: skip
    assert all(parameter.grad is None for parameter in encoder.parameters())
    calm = encoder.eval()(encoder.embed(images)).sequence
    with on_attention(encoder, lambda _, module, inputs: attention_map(module, inputs)):
        assert torch.equal(encoder(encoder.embed(images)).sequence, calm)


def test_a_collapse_of_tokens_is_seen():
    rng = torch.Generator().manual_seed(0)
    of_images, of_places = torch.randn(6, 1, 8, generator=rng), torch.randn(1, 9, 8, generator=rng)
    alike = token_collapse(of_images.expand(-1, 9, -1))
    assert [alike["token_variance"], alike["token_similarity"]] == pytest.approx([0, 1], abs=1e-12)
    assert token_collapse(of_places.expand(6, -1, -1))["token_variance"] == pytest.approx(1)
    one = token_collapse(torch.ones(6, 9, 8))
    assert list(one.values()) == pytest.approx([0, 1, 1])
    healthy = token_collapse(torch.randn(6, 9, 8, generator=rng))
    assert healthy["token_variance"] == pytest.approx(8 / 9, abs=0.05)  # of independent tokens: 1 - 1 / N
    assert abs(healthy["token_similarity"]) < 0.1 and healthy["effective_rank"] > 7
    pair = token_collapse(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    assert pair["token_similarity"] == pytest.approx(0.5**0.5)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="no image"):
        attention_rank(build(), [])
    broken = build()
    with torch.no_grad():
        broken.blocks[1].attn.qkv.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="attention of block 1 is not finite"):
        attention_rank(broken, batches(1))
    strange = build()
    strange.blocks[2] = torch.nn.Identity()
    with pytest.raises(ConfigError, match="block 2 of this encoder has no attn"):
        attention_rank(strange, batches(1))
