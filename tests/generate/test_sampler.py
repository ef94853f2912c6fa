"""The sampler: counts, orders, what is known, seeds, guidance; and ReCAP's groups against full passes."""

import dataclasses

import pytest
import torch

from masking.draw import named_noise
from masking.recap import Plan, decoding_counts, halton_order
from pretrain.errors import ConfigError
from pretrain.generate.sampler import Decoder, Given, blank, sample
from pretrain.generate.sampling import Sampling
from pretrain.objectives.token_model import Canvas
from tests.generate.plain_maskgit import plain_sample
from tests.generation_cases import FAMILIES, GRID, build, fill, rows, tokens_for

every_family = pytest.mark.parametrize("family", FAMILIES)
IMAGES = torch.tensor([0, 5, 6])
NUM = GRID.num_patches


def quick(**more):
    return Sampling(**{"plan": Plan(6), "diffusion_steps": 4, **more})


def watched(objective, monkeypatch):
    """Notes every pass: ("full" or "local", number of known positions, targets)."""
    seen = []
    look, again = type(objective).look, type(objective).look_again

    def full(self, backbone, canvas, memory, num_targets=0):
        seen.append(("full", int(canvas.known[0].sum()), None))
        return look(self, backbone, canvas, memory, num_targets)

    def local(self, backbone, canvas, memory, targets, num_filled):
        seen.append(("local", int(canvas.known[0].sum()), targets.clone()))
        return again(self, backbone, canvas, memory, targets, num_filled)

    monkeypatch.setattr(type(objective), "look", full)
    monkeypatch.setattr(type(objective), "look_again", local)
    return seen


@every_family
@pytest.mark.parametrize("plan", [Plan(6), Plan(6, 2, 1), Plan(6, 0, 2), Plan(1), Plan(36)])
def test_every_position_is_decoded_once_in_the_numbers_of_the_schedule(family, plan, monkeypatch):
    backbone, objective = build(family)
    seen = watched(objective, monkeypatch)
    tokens = sample(backbone, objective, quick(plan=plan), IMAGES)
    counts = decoding_counts(NUM, plan.steps)
    known = [sum(counts[:step]) for step in range(plan.steps)]
    assert [one[1] for one in seen] == known
    kinds = ["full" if place == 0 else "local" for group in plan.groups(counts) for place in range(len(group))]
    assert [one[0] for one in seen] == kinds
    if backbone.num_codes is not None:
        assert 0 <= tokens.min() and tokens.max() < backbone.num_codes  # no mask is left, and none was drawn


@pytest.mark.parametrize("family", ["maskgit", "mage"])
@pytest.mark.parametrize("steps", [1, 5, 12])
def test_without_local_steps_it_is_the_published_sampler_bit_for_bit(family, steps):
    backbone, objective = build(family)
    prefix = backbone.prefix_ids(None, 1, torch.device("cpu"))
    found = sample(backbone, objective, quick(plan=Plan(steps), seed=3), IMAGES)
    for number, got in zip(IMAGES.tolist(), found, strict=True):

        def look(ids):
            return objective.look(backbone, Canvas(ids, ids != backbone.mask_id, prefix), None)

        want = plain_sample(look, backbone.num_codes, backbone.mask_id, NUM, steps, number, seed=3)
        assert torch.equal(got, want)


@every_family
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_local_steps_with_full_passes_are_the_model_asked_anew_for_the_same_targets(family, guidance):
    """Written out: targets by group, each chunk from a fresh look at the canvas."""
    backbone, objective = build(family, classes=3, class_drop=0.1)
    settings = quick(plan=Plan(6, 1, 2), order="random", guidance=guidance, refresh=True, seed=1)
    labels = torch.tensor([0, 2, 1])
    got = sample(backbone, objective, settings, IMAGES, labels)
    noise = named_noise(IMAGES, 1, "generate")
    order = noise.uniform(NUM, "order").argsort(dim=1, stable=True)
    decoder = Decoder(backbone, objective, settings, noise)
    canvas = blank(backbone, IMAGES, labels, None, torch.device("cpu"))
    begin = 0
    for step, count in enumerate(decoding_counts(NUM, 6)):
        chunk = order[:, begin : begin + count]
        said = rows(objective.look(backbone, decoder.doubled(canvas), None), decoder._paired(chunk))
        strength = decoder.guidance(step, NUM - begin - count, canvas)
        tokens = decoder.drawing.draw(said, chunk, step, strength, local=step > 0)
        everywhere = tokens_for(backbone, 3)
        at = chunk if tokens.ndim == 2 else chunk[..., None].expand_as(tokens)
        canvas = fill(canvas, chunk, everywhere.scatter(1, at, tokens.to(everywhere.dtype)))
        begin += count
    torch.testing.assert_close(got, canvas.tokens, rtol=1e-4, atol=1e-4)


@every_family
def test_local_passes_differ_from_full_ones_in_what_is_kept_alone(family):
    shallow, deep = build(family, depth=1), build(family, depth=4)
    for (backbone, objective), exact in ((shallow, family == "maskgit"), (deep, False)):
        plan = quick(plan=Plan(6, 0, 2), order="random", choice_temperature=0.0)
        local = sample(backbone, objective, plan, IMAGES)
        full = sample(backbone, objective, dataclasses.replace(plan, refresh=True), IMAGES)
        same = torch.equal(local, full) if backbone.num_codes else torch.allclose(local, full, atol=1e-4)
        assert same or not exact
        assert not same or exact


@every_family
def test_an_image_is_the_same_whatever_is_generated_beside_it(family):
    backbone, objective = build(family)
    settings = quick(plan=Plan(6, 2, 1))
    whole = sample(backbone, objective, settings, IMAGES)
    alone = torch.cat([sample(backbone, objective, settings, IMAGES[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, whole, rtol=1e-3, atol=1e-3)  # sums of another batch; 0 for codes
    assert torch.equal(sample(backbone, objective, settings, IMAGES), whole)
    other = sample(backbone, objective, dataclasses.replace(settings, seed=1), IMAGES)
    assert not torch.equal(other, whole) and not torch.equal(whole[0], whole[1])


@every_family
@pytest.mark.parametrize("plan", [Plan(5), Plan(6, 1, 1)])
def test_given_tokens_never_change(family, plan):
    backbone, objective = build(family)
    known = torch.zeros(3, NUM, dtype=torch.bool)
    known[:, ::3] = True
    tokens = tokens_for(backbone, 3)
    got = sample(backbone, objective, quick(plan=plan), IMAGES, given=Given(tokens, known))
    assert torch.equal(got[known], tokens[known]) and not torch.equal(got[~known], tokens[~known])
    known[0, 1] = True
    with pytest.raises(ValueError, match="as many known tokens"):
        sample(backbone, objective, quick(plan=plan), IMAGES, given=Given(tokens, known))


@every_family
def test_guidance_of_zero_is_the_conditional_branch_and_more_changes_what_is_drawn(family):
    backbone, objective = build(family, classes=3, class_drop=0.1)
    labels = torch.tensor([0, 1, 2])
    without, tiny, strong = (
        sample(backbone, objective, quick(guidance=g, order="random"), IMAGES, labels) for g in (0.0, 1e-7, 3.0)
    )
    torch.testing.assert_close(tiny, without, rtol=1e-4, atol=1e-4)  # two branches, and the weight of one
    assert not torch.equal(strong, without)
    assert not torch.equal(sample(backbone, objective, quick(order="random"), IMAGES, labels.flip(0)), without)


def first_targets(objective, backbone, heat, images, monkeypatch):
    """The targets (B, n) of the first group, in the order in which they are decoded."""
    seen = watched(objective, monkeypatch)
    sample(backbone, objective, quick(plan=Plan(6, 0, 1), choice_temperature=heat), images)
    monkeypatch.undo()
    return next(targets for kind, _, targets in seen if kind == "local")


def test_without_noise_the_most_confident_come_first_and_with_much_noise_any(monkeypatch):
    backbone, objective = build("maskgit")
    images = torch.arange(64)
    empty = torch.zeros(64, NUM, dtype=torch.bool)
    canvas = Canvas(torch.full((64, NUM), backbone.mask_id), empty, backbone.prefix_ids(None, 64, empty.device))
    probabilities = objective.look(backbone, canvas, None).double().softmax(-1)
    numbers = named_noise(images, 0, "generate").uniform(NUM, "token-0").double()
    drawn = (probabilities.cumsum(-1) <= (numbers * probabilities.sum(-1))[..., None]).sum(-1)
    confidence = probabilities.gather(-1, drawn[..., None])[..., 0]
    greedy = first_targets(objective, backbone, 0.0, images, monkeypatch)
    assert torch.equal(greedy, confidence.argsort(dim=1, descending=True, stable=True)[:, : greedy.shape[1]])
    noisy = first_targets(objective, backbone, 1e6, images, monkeypatch)
    assert (noisy[:, 0].bincount(minlength=NUM) > 0).sum() > 25  # 64 draws of 36 positions alike


def test_a_fixed_order_is_followed():
    backbone, objective = build("maskgit")
    assert sorted(halton_order(6, 6)) == list(range(36)) and halton_order(6, 6)[:3] == [3 * 6 + 2, 1 * 6 + 4, 4 * 6 + 0]
    known = torch.zeros(1, NUM, dtype=torch.bool)
    known[0, torch.tensor(halton_order(6, 6)[3:])] = True
    tokens = tokens_for(backbone, 1)
    seen = []

    class Watching(type(objective)):
        def look(self, backbone, canvas, memory, num_targets=0):
            seen.append(canvas.known[0].clone())
            return super().look(backbone, canvas, memory, num_targets)

    objective.__class__ = Watching
    sample(backbone, objective, quick(plan=Plan(3), order="halton"), IMAGES[:1], given=Given(tokens, known))
    left = [(~one).nonzero()[:, 0].tolist() for one in seen]
    first = halton_order(6, 6)[:3]
    assert left == [sorted(first), sorted(first[1:]), sorted(first[2:])]


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("maskgit", {"plan": Plan(37)}, "use 1 to 36"),
        ("maskgit", {"plan": Plan(6, 6, 1)}, "use fewer than 6"),
        ("maskgit", {"plan": Plan(6, -1, 1)}, "must be 0 or more"),
        ("maskgit", {"guidance": 1.0}, "trained without"),
        ("maskgit", {"local_diffusion_steps": 5}, "only MAR"),
        ("maskgit", {"refresh": True}, "without local steps"),
        ("maskgit", {"cache_buffer": True, "plan": Plan(6, 0, 1)}, "which has buffer tokens"),
        ("mar", {"cache_buffer": True}, "for local steps of MAR"),
        ("maskgit", {"decay": "log"}, "use one of cosine"),
        ("mar", {"order": "confidence"}, "needs codes"),
        ("mar", {"redraw": True}, "is for codes"),
        ("mar", {"diffusion_steps": 0}, "1 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(family, changes, words):
    backbone, objective = build(family)
    with pytest.raises(ConfigError, match=words):
        sample(backbone, objective, quick(**changes), IMAGES)


def test_redrawn_codes_come_at_a_falling_temperature():
    settings = quick(plan=Plan(5), redraw=True, temperature=0.7)
    heats = [settings.token_temperature(step) for step in range(5)]
    assert heats[0] == 1 and heats[-1] == pytest.approx(0.7) and heats == sorted(heats, reverse=True)
    assert heats[1] == pytest.approx(0.7 + 0.5 * 0.3)
    backbone, objective = build("maskgit")
    plain = sample(backbone, objective, quick(plan=Plan(5)), IMAGES)
    assert not torch.equal(sample(backbone, objective, settings, IMAGES), plain)
