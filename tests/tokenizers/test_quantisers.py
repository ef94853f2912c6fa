"""What stands between encoder and decoder: every id has its code, gradients pass, and no image is in another's loss."""

import itertools
import math

import pytest
import torch
from einops import rearrange

from pretrain.errors import ConfigError
from pretrain.tokenizers.fsq import FSQConfig
from pretrain.tokenizers.kl import KLConfig, box_muller
from pretrain.tokenizers.vq import VQConfig, indecision
from pretrain.tokenizers.vq_average import AveragedVQConfig

LEVELS = [(8, 5, 5, 5), (8, 6, 5), (3,), (4, 4), (7, 5, 5, 5, 5), (3, 8, 4, 9)]
DISCRETE = [FSQConfig((8, 5, 5, 5)), VQConfig(num_codes=50, code_dim=6), AveragedVQConfig(num_codes=50, code_dim=6)]
EVERY = [*DISCRETE, KLConfig(channels=4)]
named = {"ids": lambda config: type(config).__name__}


def latents_of(config, batch=3, tokens=16, spread=1.0):
    torch.manual_seed(0)
    return torch.randn(batch, tokens, config.num_inputs) * spread


@pytest.mark.parametrize("levels", LEVELS)
def test_every_fsq_id_is_one_code_and_every_tuple_of_levels_one_id(levels):
    """Acceptance test 21."""
    quantiser, number = FSQConfig(levels).build(), math.prod(levels)
    ids = torch.arange(number)[None]
    codes = quantiser.values(ids)
    assert codes.shape == (1, number, len(levels)) and codes.dtype == torch.float32
    tuples = [[(q - n // 2) / (n // 2) for q in range(n)] for n in levels]
    wanted = {tuple(torch.tensor(code).tolist()) for code in itertools.product(*tuples)}
    assert {tuple(code) for code in codes[0].tolist()} == wanted and len(wanted) == number
    half = torch.tensor([(n - 1) * (1 - 1e-3) / 2 for n in levels], dtype=torch.float64)
    offset = torch.tensor([0.5 * (n % 2 == 0) for n in levels], dtype=torch.float64)
    steps = codes.double() * torch.tensor([n // 2 for n in levels])  # and the latents in the middle of each code
    inside = ((steps + offset) / half).clamp(-1 + 1e-6, 1 - 1e-6)
    latents = torch.atanh(inside) - torch.atanh(offset / half)
    found = quantiser(latents.float())
    assert torch.equal(found.ids, ids) and torch.equal(found.values, codes)


@pytest.mark.parametrize("levels", LEVELS)
def test_fsq_never_leaves_its_levels_however_large_a_latent_is(levels):
    config = FSQConfig(levels)
    found = config.build()(latents_of(config, tokens=500, spread=30.0))
    assert found.ids.min() >= 0 and found.ids.max() < config.num_codes
    assert found.values.abs().max() <= 1
    used = found.ids[..., None] // config.build().places % torch.tensor(levels)
    assert all(used[..., i].unique().numel() == n for i, n in enumerate(levels) if n < 8 or n % 2)


def test_fsq_of_a_hand_worked_latent():
    found = FSQConfig((4, 3)).build()(torch.tensor([[[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.5, -0.7]]]))
    # tanh(z + atanh(1/3)) * 1.4985 - 0.5 is 0, 1, -2 and 0.50; tanh(z) * 0.999 is 0, 1, -1, and -0.6
    assert found.ids.tolist() == [[2 + 4 * 1, 3 + 4 * 2, 0, 3 + 0]]
    assert found.values.tolist() == [[[0, 0], [0.5, 1], [-1, -1], [0.5, -1]]]


@pytest.mark.parametrize("config", DISCRETE, **named)
def test_values_are_the_codes_of_their_ids_to_the_bit_and_the_gradient_passes_through(config):
    quantiser = config.build()
    latents = latents_of(config).requires_grad_()
    found = quantiser(latents)
    assert torch.equal(found.values, quantiser.values(found.ids)) and found.ids.dtype == torch.int64
    found.values.square().sum().backward()
    assert (latents.grad != 0).float().mean() > 0.5 and latents.grad.isfinite().all()


@pytest.mark.parametrize("config", EVERY, **named)
def test_tokens_are_float32_whatever_the_format_and_an_image_is_alone(config):
    quantiser, latents = config.build().bfloat16(), latents_of(config).bfloat16()
    found = quantiser(latents)
    assert found.values.dtype == torch.float32 and found.values.shape == (3, 16, config.num_values)
    alone = quantiser(latents[1:2])
    torch.testing.assert_close(found.values[1:2], alone.values)
    for name, loss in found.losses.items():
        assert loss.shape == (3,) and loss.dtype == torch.float32
        torch.testing.assert_close(loss[1:2], alone.losses[name], rtol=1e-5, atol=1e-7)


def test_vq_takes_the_nearest_code_and_only_the_codebook_loss_moves_it():
    config = VQConfig(num_codes=9, code_dim=4, commitment=0.5, entropy=0.0)
    quantiser, latents = config.build(), latents_of(VQConfig(code_dim=4)).requires_grad_()
    found = quantiser(latents)
    assert torch.equal(found.ids, torch.cdist(latents, quantiser.codebook).argmin(-1))
    assert set(found.losses) == {"codebook", "commitment"}
    torch.testing.assert_close(found.losses["commitment"], 0.5 * found.losses["codebook"])
    pulls = torch.autograd.grad(found.losses["commitment"].sum(), [latents, quantiser.codebook], allow_unused=True,
                                retain_graph=True)  # fmt: skip
    assert pulls[0].any() and (pulls[1] is None or not pulls[1].any())
    pulls = torch.autograd.grad(found.losses["codebook"].sum(), [latents, quantiser.codebook], allow_unused=True)
    assert pulls[0] is None and pulls[1].any()
    assert quantiser.no_weight_decay() == {"codebook"}


def test_choices_are_best_when_each_is_sure_and_all_differ():
    sure = 50 * torch.eye(8)
    logits = torch.stack([sure, sure[:1].expand(8, -1), torch.zeros(8, 8)])
    torch.testing.assert_close(indecision(logits), torch.tensor([-math.log(8), 0.0, 0.0]), rtol=1e-5, atol=1e-5)
    far = torch.randn(2, 8, 8, requires_grad=True)
    indecision(far * 1e5).sum().backward()  # distances over a small temperature
    assert far.grad.isfinite().all()


def test_box_muller_makes_independent_standard_normal_numbers():
    normal = box_muller(torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0)))
    assert normal.isfinite().all() and box_muller(torch.zeros(1, 2)).isfinite().all()
    assert abs(float(normal.mean())) < 0.01 and abs(float(normal.std()) - 1) < 0.01
    assert abs(float((normal > 1.96).float().mean()) - 0.025) < 0.002
    one, two = normal.chunk(2, dim=1)
    assert abs(float((one * two).mean())) < 0.01


def test_kl_draws_around_its_mean_and_its_loss_is_the_divergence():
    config = KLConfig(channels=2, weight=0.1)
    quantiser, moments = config.build(), torch.zeros(4, 500, 4)
    moments[..., :2], moments[..., 2:] = 3.0, math.log(0.25)
    found = quantiser(moments, torch.rand(4, 1000, generator=torch.Generator().manual_seed(0)))
    assert abs(float(found.values.mean()) - 3) < 0.05 and abs(float(found.values.std()) - 0.5) < 0.02
    want = torch.distributions.kl_divergence(torch.distributions.Normal(3.0, 0.5), torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(found.losses["kl"], (0.1 * want).expand(4))
    assert torch.equal(quantiser(moments).values, moments[..., :2]) and found.ids is None


def test_noise_belongs_to_its_own_token():
    quantiser, moments = KLConfig(channels=4).build(), torch.zeros(2, 6, 8)
    noise = torch.rand(2, 24, generator=torch.Generator().manual_seed(0)).clamp(max=0.99)
    other = rearrange(noise.clone(), "b (half n c) -> b half n c", half=2, c=4)
    assert (quantiser(moments, noise).values[0] != quantiser(moments, noise).values[1]).any()
    other[1] = 0.5
    changed = quantiser(moments, rearrange(other, "b half n c -> b (half n c)")).values
    assert torch.equal(changed[0], quantiser(moments, noise).values[0])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FSQConfig((8, 2)), "backbone.quantiser.levels=8,2; it must be one or more numbers of levels, each 3 or more"),
        (FSQConfig(()), "one or more numbers of levels"),
        (VQConfig(num_codes=1), "backbone.quantiser.num_codes=1; it must be 2 or more"),
        (VQConfig(temperature=0.0), "above 0"),
        (KLConfig(channels=3), "backbone.quantiser.channels=3; it must be an even number, 2 or more"),
        (KLConfig(weight=-1.0), "0 or more"),
    ],
)
def test_a_quantiser_that_cannot_be_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        config.check()
