"""MAR's diffusion head: sizes, the schedule, the loss against its formulas, and sampling of a law that is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from masking.rng import generator
from pretrain.objectives.diffusion import DiffusionConfig, DiffusionHead
from pretrain.objectives.diffusion_schedule import coefficients, signals, spaced

MEAN, STD = 1.5, 0.5


def head(num_values=4, cond_width=8, **settings):
    torch.manual_seed(0)
    return DiffusionHead(DiffusionConfig(**{"width": 48, "depth": 2, **settings}), num_values, cond_width)


def restless(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def draws_for(module, num, seed=0):
    return torch.rand(num, module.config.num_draws(module.num_values), generator=generator(seed))


def normals(num, num_values=4, seed=1):
    """Standard normal numbers named by the step."""
    return lambda step: torch.randn(num, num_values, generator=generator(seed, step))


@pytest.mark.parametrize(
    ("width", "count"), [(256, 1_526_560), (512, 5_412_384), (1024, 20_261_920), (1536, 44_548_640)]
)
def test_the_published_heads_have_their_sizes(width, count):
    with torch.device("meta"):
        module = DiffusionHead(DiffusionConfig(width=width), 16, 1024)
    assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_the_schedule_is_the_published_one():
    kept = signals(1000)
    assert kept.shape == (1000,) and (np.diff(kept) < 0).all()
    half, start = (math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2 for time in (0.5, 0.0))
    assert kept[499] == pytest.approx(half / start)
    assert kept[999] / kept[998] == pytest.approx(1e-3)  # the bound of a step
    assert spaced(1000, 1000) == tuple(range(1000)) and spaced(1000, 1) == (999,)
    assert spaced(1000, 100)[:3] == (0, 10, 20) and spaced(1000, 100)[-1] == 999 and len(set(spaced(1000, 100))) == 100


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_a_thinned_chain_goes_back_exactly_where_the_noise_is_known(steps):
    """With the data known, ancestral steps keep the law of a noisy value: mean and variance of each level follow."""
    noise_scale, data_scale, of_data, of_noisy, low, _ = coefficients(1000, steps)
    for step in range(1, steps):
        mean = of_data[step] + of_noisy[step] * data_scale[step]
        variance = (of_noisy[step] * noise_scale[step]) ** 2 + math.exp(low[step])
        assert mean == pytest.approx(data_scale[step - 1]) and variance == pytest.approx(noise_scale[step - 1] ** 2)
    assert of_data[0] == pytest.approx(1) and of_noisy[0] == pytest.approx(0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_at_the_start_the_squared_error_is_one_and_the_bound_that_of_its_formula(scale):
    module = head()
    num = 40_000
    values = torch.randn(num, 4, generator=generator(2)) * scale
    draws = torch.rand(num, 4 * 5, generator=generator(3))
    loss = module.loss(values, torch.randn(num, 8), draws).double()
    # The bound in float64, from the same numbers, for a head that says 0 noise and the middle of the variances.
    parts = draws.double().numpy().reshape(num * 4, 5)
    time = np.minimum((parts[:, 0] * 1000).astype(int), 999)
    radius, angle = np.sqrt(-2 * np.log(parts[:, 1:3] + 2.0**-25)), 2 * np.pi * parts[:, 3:5]
    noise = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    noise_scale, data_scale, of_data, _, low, high = (row[time][:, None] for row in coefficients(1000, 1000))
    data = np.repeat(values.double().numpy(), 4, axis=0)
    noisy = data_scale * data + noise_scale * noise
    middle, off = (low + high) / 2, of_data * (noisy / data_scale - data)
    bound = 0.5 * (middle - low - 1 + np.exp(low - middle) + off**2 * np.exp(-middle))
    first = 0.5 * (np.log(2 * np.pi) + middle + off**2 * np.exp(-middle))
    bound = np.where(time[:, None] == 0, first, bound).mean(1) / np.log(2)
    squared = (noise**2).mean(1)
    assert squared.mean() == pytest.approx(1, abs=0.02)
    want = torch.from_numpy((squared + bound).reshape(num, 4).mean(1))
    torch.testing.assert_close(loss, want, rtol=2e-3, atol=2e-3)
    assert bound.mean() > 0


def test_timesteps_are_drawn_alike_and_the_bound_teaches_the_variance_alone():
    module = restless(head(batch_mul=1))
    seen = []
    forward = module.forward
    module.forward = lambda noisy, time, z: seen.append((time, *forward(noisy, time, z))) or seen[-1][1:]
    draws = draws_for(module, 20_000)
    values, z = torch.randn(20_000, 4), torch.randn(20_000, 8)
    loss = module.loss(values, z, draws)
    time, noise, place = seen[0]
    counts = time.bincount(minlength=10_00).float()
    assert len(counts) == 1000 and counts.min() > 2 and counts.mean() == 20
    by_noise, by_place = torch.autograd.grad(loss.sum(), (noise, place))
    drawn = draws[:, 1:].double()
    radius, angle = (-2 * (drawn[:, :2] + 2.0**-25).log()).sqrt(), 2 * math.pi * drawn[:, 2:]
    true = torch.cat([radius * angle.cos(), radius * angle.sin()], 1).float()
    torch.testing.assert_close(by_noise, (noise - true) / 2, rtol=1e-3, atol=1e-4)  # of the mean of four squares
    assert (by_place != 0).float().mean() > 0.99


def trained(steps, **settings):
    """A head that has seen N(MEAN, STD) alone."""
    module = head(batch_mul=1, **settings)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        values = MEAN + STD * torch.randn(512, 4, generator=generator(5, step))
        draws = torch.rand(512, module.config.num_draws(4), generator=generator(6, step))
        optimizer.zero_grad()
        module.loss(values, torch.zeros(512, 8), draws).mean().backward()
        optimizer.step()
    return module.eval()


def test_more_noises_a_token_are_the_mean_of_single_ones_and_quieten_it():
    num, module = 20_000, trained(100)
    draws = torch.rand(num, 4 * 5, generator=generator(7))
    module.config = dataclasses.replace(module.config, batch_mul=4)
    four = module.loss(torch.full((num, 4), MEAN), torch.zeros(num, 8), draws).detach()
    module.config = dataclasses.replace(module.config, batch_mul=1)
    single = module.loss(torch.full((4 * num, 4), MEAN), torch.zeros(4 * num, 8), draws.reshape(4 * num, 5)).detach()
    torch.testing.assert_close(four, single.view(num, 4).mean(1))
    assert four.var() == pytest.approx(single.var().item() / 4, rel=0.05)  # both have the long tail of first timesteps


@pytest.mark.slow
@pytest.mark.parametrize("steps", [100, 1000])
def test_a_trained_head_samples_its_law_within_two_percent(steps):
    module = trained(6000, width=96)
    found = module.sample(torch.zeros(8000, 8), normals(8000), steps=steps)
    assert found.mean() == pytest.approx(MEAN, rel=0.02) and found.std() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_sample_takes_as_many_evaluations_as_asked(steps):
    module, seen = restless(head()), []
    forward = module.forward
    module.forward = lambda noisy, time, z: seen.append(int(time[0])) or forward(noisy, time, z)
    module.sample(torch.randn(3, 8), normals(3), steps=steps)
    assert seen == sorted(spaced(1000, steps), reverse=True) and len(seen) == steps


def test_guidance_of_one_is_the_condition_alone_and_both_branches_have_the_same_noise():
    module = restless(head())
    z, other = torch.randn(2, 5, 8, generator=generator(1))
    alone = module.sample(z, normals(5), steps=6)
    torch.testing.assert_close(module.sample(z, normals(5), steps=6, guidance=1.0, z_uncond=other), alone)
    torch.testing.assert_close(module.sample(z, normals(5), steps=6, guidance=3.0, z_uncond=z), alone)
    strong = module.sample(z, normals(5), steps=6, guidance=torch.full((5, 1), 3.0), z_uncond=other)
    assert not torch.allclose(strong, alone, atol=1e-3)


def test_the_mean_token_is_a_function_of_its_condition():
    module = restless(head(loss="l2"))
    z, values = torch.randn(5, 8), torch.randn(5, 4)
    assert module.config.num_draws(4) == 0
    one, two = (module.sample(z, normals(5, seed=seed)) for seed in (1, 2))
    assert torch.equal(one, two) and not torch.equal(one[0], one[1])
    torch.testing.assert_close(module.loss(values, z, torch.zeros(5, 0)), (one - values).square().mean(1))


def test_bf16_weights_keep_the_loss_in_fp32_and_near():
    module, num = restless(head()), 2000
    values, z, draws = torch.randn(num, 4), torch.randn(num, 8), draws_for(head(), num)
    want = module.loss(values, z, draws)
    got = module.bfloat16().loss(values, z, draws)
    assert got.dtype == torch.float32 and got.median().item() == pytest.approx(want.median().item(), rel=0.02)
    assert torch.equal(module.bits, head().bits)


def test_the_loss_is_one_graph():
    module = restless(head())
    values, z, draws = torch.randn(6, 4), torch.randn(6, 8), draws_for(module, 6)
    compiled = torch.compile(module.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(values, z, draws), module.loss(values, z, draws))
