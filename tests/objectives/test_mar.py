"""MAR against its paper: sizes, what a hidden token may not tell, order, and numbers that the step hands over."""

import dataclasses
import itertools

import pytest
import torch

from masking.mask import Grid, Mask
from masking.recap import Plan
from masking.rng import generator
from pretrain.generate.sampler import sample
from pretrain.generate.sampling import Sampling
from pretrain.objectives.diffusion import DiffusionConfig
from pretrain.objectives.mar import MARConfig
from pretrain.objectives.token_model import Canvas, Memory
from pretrain.tokenizers.base import Kind
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.tokenizers.token_vit import TokenViTConfig
from pretrain.types import Labels, Target
from tests.generation_cases import GRID, build, canvas_for, difference, rows, tokens_for

NUM = GRID.num_patches


@pytest.mark.parametrize(
    ("size", "depth", "head", "count"),
    [("base", 12, (1024, 6), 207.9), ("large", 16, (1280, 8), 478.3), ("huge", 20, (1536, 12), 942.4)],
)
def test_the_published_models_have_their_sizes(size, depth, head, count, monkeypatch):
    monkeypatch.setattr(TokenizerConfig, "kind", lambda self, in_chans=None: Kind(16, None, 16, 3))
    tokenizer = TokenizerConfig("pixels", patch_size=16)
    config = TokenViTConfig(tokenizer, size, num_prefix=64, classes=1000, class_drop=0.1, depth=depth)
    with torch.device("meta"):
        backbone = config.build(Grid(16, 16), 3, (0.5,) * 3, (0.5,) * 3)
        objective = MARConfig(decoder_depth=depth, head=DiffusionConfig(*head)).build(backbone)
    total = sum(p.numel() for module in (backbone, objective) for p in module.parameters())
    assert total / 1e6 == pytest.approx(count, abs=0.1)
    assert backbone.pos_embed.shape == objective.decoder.pos_embed.shape == (1, 320, backbone.width)


def losses(backbone, objective, values, mask, numbers, labels=None):
    target = Target(values, labels=None if labels is None else Labels.single(torch.tensor(labels)))
    return objective(backbone, None, mask, target, numbers)[0]["diffusion"]


def numbers_for(objective, seed=3):
    each = objective.config.head.num_draws(48)
    return torch.rand(3, 1 + NUM * each, generator=generator(seed))


def test_a_hidden_token_tells_its_own_loss_and_nothing_else():
    backbone, objective = build("mar")
    values, conditions = tokens_for(backbone, 3), []
    mask = Mask.cut(torch.rand(3, NUM, generator=generator(5)), 10)
    loss = objective.head.loss
    objective.head.loss = lambda values, z, draws: conditions.append(z) or loss(values, z, draws)
    numbers = numbers_for(objective)
    for chosen in (None, mask.hidden, ~mask.hidden):
        changed = values if chosen is None else torch.where(chosen[..., None], values + 1, values)
        losses(backbone, objective, changed, mask, numbers)
    assert torch.equal(conditions[0], conditions[1]) and not torch.equal(conditions[0], conditions[2])
    assert conditions[0].shape == (3 * 26, 48)


def test_a_loss_belongs_to_its_position_and_numbers():
    """The numbers of a position are its own: hiding others beside it changes what it is told, not what it draws."""
    backbone, objective = build("mar", classes=4, class_drop=0.25)
    values, numbers = tokens_for(backbone, 3), numbers_for(objective)
    mask = Mask.cut(torch.rand(3, NUM, generator=generator(5)), 10)
    numbers[:, 0] = 0.5
    whole = losses(backbone, objective, values, mask, numbers, [0, 1, 2])
    other = numbers.clone()
    each = objective.config.head.num_draws(48)
    visible = mask.ids_keep[0, 0]
    other[:, 1 + visible * each : 1 + (visible + 1) * each] = 0.1
    assert torch.equal(losses(backbone, objective, values, mask, other, [0, 1, 2])[0], whole[0])
    assert not torch.equal(losses(backbone, objective, values, mask, numbers, [3, 1, 2])[0], whole[0])
    other[:, 0] = 0.1  # the class is dropped
    assert torch.equal(
        losses(backbone, objective, values, mask, other, [0, 1, 2]), losses(backbone, objective, values, mask, other)
    )


def test_everything_may_be_hidden():
    backbone, objective = build("mar")
    mask = Mask.cut(torch.rand(3, NUM), 0)
    assert losses(backbone, objective, tokens_for(backbone, 3), mask, numbers_for(objective)).isfinite().all()


def test_one_token_a_step_is_the_factorisation_over_the_order():
    """Each condition follows from the tokens before it in the order, as in an autoregressive model."""
    backbone, objective = build("mar")
    images, seen = torch.tensor([4]), []
    look = objective.look
    objective.look = lambda *args: seen.append((args[1].known.clone(), args[1].tokens.clone())) or look(*args)
    tokens = sample(backbone, objective, Sampling(Plan(NUM), diffusion_steps=2), images)
    assert [int(known.sum()) for known, _ in seen] == list(range(NUM))
    for (known, before), (later, _) in itertools.pairwise(seen):
        assert (later | ~known).all() and int(later.sum()) == int(known.sum()) + 1
        assert torch.equal(before[known], tokens[known])
    order = torch.stack([known[0] for known, _ in seen]).long().sum(0)
    assert order.sort().values.tolist() == list(range(NUM)) and order.tolist() != list(range(NUM))


def test_a_local_chunk_takes_the_diffusion_steps_that_were_asked_for():
    backbone, objective = build("mar")
    calls, forward = [], objective.head.forward
    objective.head.forward = lambda noisy, time, z: calls.append(len(z)) or forward(noisy, time, z)
    settings = Sampling(Plan(4, 1, 1), diffusion_steps=7, local_diffusion_steps=3)
    sample(backbone, objective, settings, torch.arange(2))
    counts = [calls.count(number) for number in dict.fromkeys(calls)]
    assert counts == [7, 7, 3, 7]  # full, full and local, full: four chunks of other sizes


def test_the_mean_loses_what_is_drawn():
    """With the squared error instead of diffusion an order gives one image."""
    backbone, objective = build("mar")
    objective.head.config = dataclasses.replace(objective.head.config, loss="l2")
    drawn = sample(backbone, objective, Sampling(Plan(4), order="halton"), torch.arange(3))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[1], drawn[2])
    objective.head.config = dataclasses.replace(objective.head.config, loss="diffusion")
    drawn = sample(backbone, objective, Sampling(Plan(4), order="halton", diffusion_steps=3), torch.arange(3))
    assert not torch.allclose(drawn[0], drawn[1], atol=0.1)


def test_the_encoders_memory_holds_the_context_and_makes_room_for_what_is_filled():
    backbone, objective = build("mar")
    known = torch.zeros(2, NUM, dtype=torch.bool)
    known[:, 3:9] = True
    canvas, memory = canvas_for(backbone, known), Memory()
    said = objective.look(backbone, canvas, memory, 5)
    assert memory.num_context == 5 + 6 and memory.encoder.layers[0].shape[1] == 5 + 6 + 5
    targets = torch.tensor([[20, 1, 30, 12, 13], [11, 10, 2, 33, 0]])
    before = memory.encoder.layers[2][:, 5:11].clone()
    later = Canvas(tokens_for(backbone, 2, seed=8), known.scatter(1, targets[:, :2], True), canvas.prefix)
    again = objective.look_again(backbone, later, memory, targets, 2)
    assert torch.equal(memory.encoder.layers[2][:, 5:11], before) and memory.encoder.layers[2][:, 11:13].any()
    assert difference(again, rows(said, targets)) > 1e-4
