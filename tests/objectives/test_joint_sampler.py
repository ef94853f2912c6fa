"""The joint sampler (ADJUST): what it begins as, what it may see, what it learns, and the steps that it takes."""

import dataclasses

import pytest
import torch

from masking.draw import named_noise
from masking.recap import Plan
from pretrain.errors import ConfigError
from pretrain.generate.joint import Joint
from pretrain.generate.sampler import sample
from pretrain.generate.sampling import Sampling
from pretrain.objectives.joint_base import FrozenBase
from pretrain.objectives.joint_sampler import JointSamplerConfig
from pretrain.objectives.maskgit import hidden_by
from pretrain.types import Labels, Target
from tests.generation_cases import GRID, build, difference, encoder_config, tokens_for

NUM = GRID.num_patches
IMAGES = torch.arange(3)


def built(*, fresh=True, classes=None, class_drop=0.0, seed=0):
    """(base's backbone, base's objective, student's backbone, student), the student of that base, in eval mode."""
    more = {"classes": classes, "class_drop": class_drop}
    backbone, objective = build("maskgit", depth=3, **more)
    torch.manual_seed(seed + 1)
    config = dataclasses.replace(encoder_config("maskgit", depth=1, **more), width=32, heads=2)
    block = config.build(GRID, 3, (), ())
    student = JointSamplerConfig().build(block)
    student.base = FrozenBase(backbone, objective)
    student.enter, student.reveal = torch.nn.Linear(48, 32), torch.nn.Linear(48, 32)
    student.leave = torch.nn.Linear(32, 48)
    torch.nn.init.zeros_(student.leave.weight)
    torch.nn.init.zeros_(student.leave.bias)
    if not fresh:
        with torch.no_grad():
            student.leave.weight.add_(torch.randn(48, 32) * 0.2)
    return backbone, objective, block.eval(), student.eval()


def numbers_for(batch=4, seed=3):
    return torch.rand(batch, 3 + NUM, generator=torch.Generator().manual_seed(seed))


def split(numbers):
    """Hidden, and revealed among them, as the step's numbers say: (B, N) bool each."""
    hidden = hidden_by(numbers[:, 0], numbers[:, 3:], "cosine")
    rank = numbers[:, 3:].argsort(1).argsort(1)
    return hidden, hidden & (rank < (numbers[:, 2] * hidden.sum(1)).long()[:, None])


def test_an_untrained_one_says_what_the_base_said():
    backbone, objective, block, student = built()
    tokens, numbers = tokens_for(backbone, 4), numbers_for()
    losses, _ = student(block, None, None, Target(tokens), numbers)
    assert torch.equal(losses["joint"], losses["marginal"])
    known = objective.features(backbone, tokens, backbone.prefix_ids(None, 4, tokens.device))
    said = student.look_again(block, known, tokens, torch.zeros(4, NUM, dtype=torch.bool), None)
    assert torch.equal(said, objective.logits(backbone, known))


def test_the_loss_is_the_divergence_from_a_full_look_at_what_was_revealed():
    backbone, objective, block, student = built(fresh=False)
    tokens, numbers = tokens_for(backbone, 4), numbers_for()
    hidden, revealed = split(numbers)
    assert bool((hidden & ~revealed).any(1).all()) and bool(revealed.any())
    prefix = backbone.prefix_ids(None, 4, tokens.device)
    before = torch.where(hidden, backbone.mask_id, tokens)
    after = torch.where(revealed, tokens, before)
    wanted = objective.logits(backbone, objective.features(backbone, after, prefix)).log_softmax(-1)
    known = objective.features(backbone, before, prefix)
    found = student.look_again(block, known, tokens, revealed, None).log_softmax(-1)
    each = torch.nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    losses, _ = student(block, None, None, Target(tokens), numbers)
    left = (hidden & ~revealed).float()
    torch.testing.assert_close(losses["joint"], (each * left).sum(1) / left.sum(1))


def test_a_token_that_stays_hidden_tells_nothing_and_a_revealed_one_does():
    backbone, _, block, student = built(fresh=False)
    tokens, numbers = tokens_for(backbone, 4), numbers_for()
    hidden, revealed = split(numbers)
    want = student(block, None, None, Target(tokens), numbers)[0]
    other = torch.where(hidden & ~revealed, (tokens + 7) % 512, tokens)
    got = student(block, None, None, Target(other), numbers)[0]
    assert all(torch.equal(got[name], want[name]) for name in want)
    other = torch.where(revealed, (tokens + 7) % 512, tokens)
    got = student(block, None, None, Target(other), numbers)[0]
    changed = revealed.any(1)
    assert bool((got["joint"] != want["joint"])[changed].all())


def test_it_learns_what_the_next_look_would_say():
    """On images that it has not seen, the divergence falls to a half of that of the base without another look."""
    backbone, _, block, student = built()
    parameters = [*block.parameters(), *student.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3)
    for step in range(150):
        losses, _ = student(block, None, None, Target(tokens_for(backbone, 16, seed=100 + step)), numbers_for(16, step))
        optimizer.zero_grad()
        losses["joint"].mean().backward()
        optimizer.step()
    losses, _ = student(block, None, None, Target(tokens_for(backbone, 64, seed=9)), numbers_for(64, 999))
    assert losses["joint"].mean() < 0.5 * losses["marginal"].mean()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_local_steps_are_its_own_and_full_ones_the_samplers(guidance):
    more = {"classes": 3, "class_drop": 0.1}
    backbone, objective, block, student = built(fresh=False, **more)
    labels = torch.tensor([0, 1, -1])
    joint = Joint(block, student)
    asked = []
    look = student.look_again
    student.look_again = lambda *given: asked.append(int(given[3][0].sum())) or look(*given)
    settings = Sampling(Plan(6, 1, 2), guidance=guidance)
    found = sample(backbone, objective, settings, IMAGES, labels, joint=joint)
    assert found.shape == (3, NUM) and int(found.max()) < 512
    assert len(asked) == 3 and asked[0] < asked[1]  # groups of 1, 3 and 2 steps: 0, 2 and 1 of them local
    assert torch.equal(sample(backbone, objective, settings, IMAGES[1:], labels[1:], joint=joint), found[1:])
    assert not torch.equal(sample(backbone, objective, settings, IMAGES, labels), found)


def test_a_fresh_one_draws_the_whole_group_from_one_look():
    """What an untrained one does is to decode n positions at once, but drawn at the steps that they belong to."""
    backbone, objective, block, student = built()
    found = sample(backbone, objective, Sampling(Plan(2, 0, 1), order="random"), IMAGES, joint=Joint(block, student))
    prefix = backbone.prefix_ids(None, 3, found.device)
    blank = torch.full((3, NUM), backbone.mask_id)
    said = objective.logits(backbone, objective.features(backbone, blank, prefix))
    function = said.double().softmax(-1).cumsum(-1)
    noise, every = named_noise(IMAGES, 0, "generate"), torch.arange(NUM)[None]
    drawn = []
    for step in range(2):
        at = noise.uniform_at(every, f"token-{step}").double() * function[..., -1]
        drawn.append(torch.searchsorted(function, at[..., None], right=True)[..., 0])
    assert bool(((found == drawn[0]) | (found == drawn[1])).all())
    assert difference(drawn[0].double(), found.double()) > 0


def test_it_is_refused_where_it_does_not_belong():
    backbone, objective, block, student = built()
    joint = Joint(block, student)
    with pytest.raises(ConfigError, match="a joint sampler is for local steps, and there are none"):
        sample(backbone, objective, Sampling(Plan(6)), IMAGES, joint=joint)
    other, its_objective = build("maskgit", depth=3, seed=5)
    with pytest.raises(ConfigError, match="was trained for another model, or other weights of it"):
        sample(other, its_objective, Sampling(Plan(6, 0, 1)), IMAGES, joint=joint)
    mage = build("mage", depth=1)
    with pytest.raises(ConfigError, match="was trained for another model"):
        sample(*mage, Sampling(Plan(6, 0, 1)), IMAGES, joint=joint)


def test_classes_are_told_to_both():
    backbone, _, block, student = built(fresh=False, classes=3, class_drop=0.0)
    tokens, numbers = tokens_for(backbone, 4), numbers_for()
    told = [Target(tokens, labels=Labels.single(torch.full((4,), one))) for one in (0, 1)]
    found = [student(block, None, None, target, numbers)[0]["joint"] for target in told]
    assert not torch.allclose(*found)
