"""Steps that are left out: the rule that finds nothing, the one that knows the end, and the one that is learned."""

import dataclasses
import types

import pytest
import torch

from masking.recap import Plan
from pretrain.errors import ConfigError
from pretrain.generate import stopping_filter
from pretrain.generate.sampler import Given, sample
from pretrain.generate.sampling import Sampling
from pretrain.generate.stopping import Confident, Nothing, Oracle, Rule, sample_until_settled
from pretrain.generate.stopping_filter import Filter, Learned, inputs_of, learn, load, save
from pretrain.objectives.token_model import Canvas
from tests.generation_cases import GRID, build, tokens_for

NUM = GRID.num_patches
IMAGES = torch.arange(5)
STEPS = 12
GREEDY = {"temperature": 0.0, "choice_temperature": 0.0}
discrete = pytest.mark.parametrize("family", ["maskgit", "mage"])


class Odd(Rule):
    """Settled are codes that are divisible by three: other positions, and numbers of them, in every image."""

    def settled(self, said, canvas, ids, rows):
        return ids % 3 == 0


@discrete
@pytest.mark.parametrize("order", ["confidence", "random", "halton"])
@pytest.mark.parametrize("more", [{}, {"redraw": True}, {"guidance": 1.5}])
def test_a_rule_that_finds_nothing_settled_is_the_ordinary_sampler_to_the_bit(family, order, more):
    backbone, objective = build(family, classes=3, class_drop=0.1)
    labels = torch.tensor([0, 1, 2, -1, 0])
    settings = Sampling(Plan(STEPS), order=order, seed=2, **more)
    want = sample(backbone, objective, settings, IMAGES, labels)
    sure = Learned(Filter(), GRID, 1.0)  # acceptance: tau = 1
    for rule in (Nothing(), sure):
        got, passes = sample_until_settled(backbone, objective, settings, rule, IMAGES, labels)
        assert torch.equal(got, want) and passes.tolist() == [STEPS] * 5


@discrete
@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_who_knows_the_end_reaches_it_exactly_in_fewer_steps(family, order):
    backbone, objective = build(family)
    settings = Sampling(Plan(NUM), order=order, **GREEDY)
    slow = sample(backbone, objective, settings, IMAGES)
    got, passes = sample_until_settled(backbone, objective, settings, Oracle(slow), IMAGES)
    assert torch.equal(got, slow)
    assert int(passes.max()) < NUM and float(passes.double().mean()) < 0.8 * NUM


def test_an_image_takes_its_own_number_of_steps_and_is_the_same_beside_any_others():
    backbone, objective = build("maskgit")
    settings = Sampling(Plan(STEPS), seed=1)
    got, passes = sample_until_settled(backbone, objective, settings, Odd(), IMAGES)
    assert int(passes.max()) < STEPS and len(passes.unique()) > 1
    assert 0 <= got.min() and got.max() < backbone.num_codes  # nothing is left out
    for number in IMAGES.tolist():
        alone, taken = sample_until_settled(backbone, objective, settings, Odd(), IMAGES[number : number + 1])
        assert torch.equal(alone[0], got[number]) and taken[0] == passes[number]


def test_what_is_given_never_changes():
    backbone, objective = build("maskgit")
    tokens = tokens_for(backbone, 5)
    known = torch.rand(5, NUM, generator=torch.Generator().manual_seed(0)).argsort(1) < 10
    settings = Sampling(Plan(6))
    got, passes = sample_until_settled(backbone, objective, settings, Odd(), IMAGES, given=Given(tokens, known))
    assert torch.equal(got[known], tokens[known]) and got.max() < backbone.num_codes and passes.max() <= 6


def test_a_lower_threshold_takes_fewer_steps():
    backbone, objective = build("maskgit")
    settings = Sampling(Plan(STEPS))
    taken = [
        float(sample_until_settled(backbone, objective, settings, Confident(least), IMAGES)[1].double().mean())
        for least in (1.0, 0.02, 0.0)
    ]
    assert taken[0] == STEPS and taken[2] == 1 and taken[0] >= taken[1] >= taken[2]


def test_inputs_are_the_neighbourhood_as_written_out():
    _backbone, _objective = build("maskgit")
    known = torch.rand(2, NUM, generator=torch.Generator().manual_seed(3)) < 0.4
    said = torch.randn(2, NUM, 7)
    got = inputs_of(said, known, GRID)
    sure = torch.where(known, 1.0, said.softmax(-1).max(-1).values).view(2, 6, 6)
    for row, column in ((0, 0), (3, 2), (5, 5)):
        around = [
            (float(sure[1, y, x]), float(known[1].view(6, 6)[y, x])) if 0 <= y < 6 and 0 <= x < 6 else (0.0, 0.0)
            for y in range(row - 1, row + 2) for x in range(column - 1, column + 2)
        ]  # fmt: skip
        want = [one for one, _ in around] + [two for _, two in around] + [float(known[1].float().mean())]
        assert got[1, row * 6 + column].tolist() == pytest.approx(want)


def beside_known(known):
    """Whether the patch on the left is known, or off the grid."""
    return torch.nn.functional.pad(known.view(-1, 6, 6), (1, 0), value=True)[..., :-1].reshape(known.shape)


class Neighbourly:
    """Stands where a model does: says one thing of a position while its left neighbour is hidden, another after."""

    def look(self, backbone, canvas, memory, num_targets=0):
        said = torch.zeros(*canvas.tokens.shape, 8)
        beside = beside_known(canvas.known)
        said[..., 2] += torch.where(beside, 1.5, 0.0)
        said[..., 3] += torch.where(beside, 0.0, 1.5)
        return said


def test_a_learned_rule_finds_what_no_threshold_does():
    """Every answer is as sure as every other, so a threshold has all or nothing; neighbours say what is settled."""
    backbone, _ = build("maskgit")
    generator = types.SimpleNamespace(backbone=backbone, objective=Neighbourly())
    rng = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8, generator=rng), torch.zeros(16, dtype=torch.int64))
        for _ in range(20)
    ]
    made, facts = learn(generator, batches, delta=0.05)
    assert 0.1 < facts["called"] < facts["settled"] < 0.85 and facts["called_rightly"] > 0.97
    again, _ = learn(generator, batches, delta=0.05)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    known = torch.rand(4, NUM, generator=rng) < 0.5
    canvas = Canvas(torch.zeros(4, NUM, dtype=torch.int64), known, torch.zeros(4, dtype=torch.int64))
    said = Neighbourly().look(backbone, canvas, None)
    settled = Learned(made, GRID, 0.9).settled(said, canvas, canvas.tokens, torch.arange(4))
    rests, waits = ~known & beside_known(known), ~known & ~beside_known(known)
    assert settled[rests].float().mean() > 0.9 and settled[waits].float().mean() < 0.1


def test_a_rule_is_kept_beside_its_run_and_refused_for_other_weights(tmp_path):
    backbone, _ = build("maskgit")
    loaded = types.SimpleNamespace(step=20, which="ema")
    generator = types.SimpleNamespace(backbone=backbone, loaded=loaded)
    with pytest.raises(ConfigError, match="learn it first: lacuna generate"):
        load(generator, tmp_path, 0.9)
    torch.manual_seed(4)
    made = Filter()
    path = save(made, generator, {"right": 0.9}, tmp_path)
    rule = load(generator, tmp_path, 0.9)
    assert path.name == stopping_filter.FILE and rule.least == 0.9
    assert sum(parameter.numel() for parameter in rule.filter.parameters()) == 1729
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), rule.filter.parameters(), strict=True))
    generator.loaded = types.SimpleNamespace(step=40, which="ema")
    with pytest.raises(ConfigError, match="learn it anew"):
        load(generator, tmp_path, 0.9)
    with pytest.raises(ConfigError, match="--stop=0"):
        load(generator, tmp_path, 0.0)
    path.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="holds no stopping rule"):
        load(generator, tmp_path, 0.9)


def test_it_is_refused_where_steps_cannot_be_left_out():
    with pytest.raises(ConfigError, match="MAR's values have none"):
        sample_until_settled(*build("mar"), Sampling(Plan(6)), Nothing(), IMAGES)
    settings = Sampling(Plan(6, 0, 1))
    with pytest.raises(ConfigError, match="without --recap"):
        sample_until_settled(*build("maskgit"), settings, Nothing(), IMAGES)
    backbone, objective = build("maskgit")
    generator = types.SimpleNamespace(backbone=backbone, objective=objective)
    for wrong, text in (({"delta": 0.0}, "delta=0"), ({}, "give more of them")):
        with pytest.raises(ConfigError, match=text):
            learn(generator, [(torch.zeros(2, 3, 24, 24, dtype=torch.uint8), torch.zeros(2))], **wrong)
    assert dataclasses.is_dataclass(Learned)
