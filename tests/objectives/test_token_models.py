"""MaskGIT and MAGE against their papers: sizes, ratios, losses, and what a hidden token may not tell."""

import dataclasses
import math

import pytest
import torch

from masking.mask import Grid, Mask
from masking.ratio import TruncatedNormalRatio
from masking.rng import generator
from pretrain.config import load_config
from pretrain.objectives.mage import MAGEConfig
from pretrain.objectives.maskgit import hidden_by
from pretrain.objectives.token_model import replaced, token_losses
from pretrain.tokenizers.base import Kind
from pretrain.tokenizers.frozen import TokenizerConfig
from pretrain.types import Labels, Target
from tests.generation_cases import GRID, build, tokens_for
from tests.syntax import ROOT

NUM = GRID.num_patches


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture
def published_tokens(monkeypatch):
    """The published tokenizer's numbers, 1024 codes of 16 pixels: all that the size of a model depends on."""
    monkeypatch.setattr(TokenizerConfig, "kind", lambda self, in_chans=None: Kind(16, 1024, 256, 3))


def test_the_published_maskgit_has_172_457_193_parameters(published_tokens):
    config = load_config(ROOT / "configs" / "maskgit_in256.py", ["backbone.tokenizer.path=palette"])
    with torch.device("meta"):
        backbone = config.backbone.build(Grid(16, 16), 3, (0.5,) * 3, (0.5,) * 3)
        objective = config.objective.build(backbone)
    assert count(backbone, objective) == 172_457_193


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equal_logits_cost_the_logarithm_of_the_number_of_codes(smoothing):
    ids = torch.randint(0, 1024, (2, 5), generator=generator(0))
    losses = token_losses(torch.full((2, 5, 1024), 3.0), ids, smoothing)
    torch.testing.assert_close(losses, torch.full((2, 5), math.log(1024)))
    logits = torch.randn(10, 1024, generator=generator(1))
    want = torch.nn.functional.cross_entropy(logits, ids.flatten(), label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(token_losses(logits.view(2, 5, 1024), ids, smoothing).flatten(), want)


def test_only_hidden_targets_have_a_gradient():
    backbone, objective = build("maskgit")
    numbers = torch.rand(3, 2 + NUM, generator=generator(3))
    hidden = hidden_by(numbers[:, 0], numbers[:, 2:], "cosine")
    logits = []

    class Head(torch.nn.Module):
        def forward(self, x, table, num_codes, frozen=False):
            logits.append(torch.randn(3, NUM, 512, generator=generator(4)).requires_grad_())
            return logits[0]

    objective.head = Head()
    losses, _ = objective(backbone, None, None, Target(tokens_for(backbone, 3)), numbers)
    losses["token"].sum().backward()
    assert torch.equal(logits[0].grad.abs().sum(-1) > 0, hidden)


@pytest.mark.parametrize("law", ["cosine", "arccos"])
def test_the_hidden_share_follows_its_law(law):
    numbers = (torch.arange(20_000) + 0.5) / 20_000
    order = torch.rand(20_000, 64, generator=generator(0))
    share = hidden_by(numbers, order, law).float().mean(1)
    assert share.mean() == pytest.approx(2 / math.pi, abs=0.01)  # rounding up adds half of one in 64
    # Distribution functions of cos(pi u / 2) and of arccos(u) / (pi / 2), u uniform.
    theory = {"cosine": lambda x: 2 / math.pi * math.asin(x), "arccos": lambda x: 1 - math.cos(math.pi / 2 * x)}
    for x in (0.25, 0.5, 0.75, 0.9):
        found = {name: abs(float((share <= x + 1 / 128).float().mean()) - function(x + 1 / 128))
                 for name, function in theory.items()}  # fmt: skip
        assert found[law] < 0.03
    half = float((share > 0.5).float().mean())
    assert half == pytest.approx(2 / 3 if law == "cosine" else 0.707, abs=0.02)
    counts = hidden_by(torch.tensor([0.0, 0.999999]), order[:2], law).sum(1).tolist()
    assert counts == [64, 1]


@pytest.mark.parametrize("family", ["maskgit", "mage"])
def test_the_true_id_of_a_hidden_token_is_nowhere_in_the_logits(family):
    backbone, objective = build(family)
    ids, logits = tokens_for(backbone, 3), []
    mask = Mask.cut(torch.rand(3, NUM, generator=generator(5)), 12)
    numbers = torch.rand(3, 2 + NUM, generator=generator(6))
    hidden = mask.hidden if family == "mage" else hidden_by(numbers[:, 0], numbers[:, 2:], "cosine")
    head = objective.head.forward
    objective.head.forward = lambda *args, **more: logits.append(head(*args, **more)) or logits[-1]
    for value in (ids, torch.where(hidden, (ids + 7) % 512, ids), torch.where(hidden, ids, (ids + 7) % 512)):
        losses, _ = objective(backbone, None, mask, Target(value), numbers)
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
    assert losses["token"].isfinite().all()


def test_replacement_changes_a_share_of_the_visible_ids_and_zero_changes_nothing():
    ids = torch.randint(0, 512, (64, NUM), generator=generator(0))
    visible = torch.rand(64, NUM, generator=generator(1)) < 0.5
    numbers = torch.rand(64, 2 * NUM, generator=generator(2))
    changed = replaced(ids, visible, 0.25, numbers, 512)
    assert torch.equal(changed[~visible], ids[~visible])
    assert (changed != ids)[visible].float().mean() == pytest.approx(0.25, abs=0.03)
    assert 0 <= changed.min() and changed.max() < 512
    backbone, objective = build("maskgit")
    target, draws = Target(ids[:3]), torch.rand(3, 2 + 3 * NUM, generator=generator(3))
    plain = objective(backbone, None, None, target, draws[:, : 2 + NUM])[0]
    objective.config = dataclasses.replace(objective.config, replace_ratio=1e-9)
    other = objective(backbone, None, None, target, draws)[0]
    assert torch.equal(plain["token"], other["token"]) and "restore" not in plain and other["restore"].sum() > 0
    objective.config = dataclasses.replace(objective.config, replace_ratio=0.5)
    assert not torch.equal(objective(backbone, None, None, target, draws)[0]["token"], plain["token"])


@pytest.mark.parametrize("family", ["maskgit", "mage"])
def test_a_class_is_told_or_dropped_by_the_numbers_of_the_step(family):
    backbone, objective = build(family, classes=4, class_drop=0.25)
    ids = tokens_for(backbone, 3)
    mask = Mask.cut(torch.rand(3, NUM, generator=generator(5)), 12)
    numbers = torch.rand(3, 2 + NUM, generator=generator(6))
    column = 1 if family == "maskgit" else 0

    def losses(labels, number):
        numbers[:, column] = number
        target = Target(ids, labels=None if labels is None else Labels.single(torch.tensor(labels)))
        return objective(backbone, None, mask, target, numbers)[0]["token"]

    assert not torch.equal(losses([0, 1, 2], 0.5), losses([3, 1, 2], 0.5))
    assert torch.equal(losses([0, 1, 2], 0.5)[1:], losses([3, 1, 2], 0.5)[1:])
    assert torch.equal(losses([0, 1, 2], 0.1), losses([3, 0, 1], 0.1))
    assert torch.equal(losses([0, 1, 2], 0.1), losses(None, 0.1))


@pytest.mark.parametrize("num_hidden", [18, 19, 27, 36])
def test_mages_encoder_sees_as_many_tokens_whatever_the_ratio(num_hidden):
    backbone, objective = build("mage")
    mask = Mask.cut(torch.rand(3, NUM, generator=generator(5)), NUM - num_hidden)
    seen = []
    encode = backbone.forward
    backbone.forward = lambda tokens, ids, **more: seen.append(ids) or encode(tokens, ids, **more)
    _, features = objective(backbone, None, mask, Target(tokens_for(backbone, 3)))
    assert seen[0].shape == (3, NUM - math.ceil(NUM / 2))
    kept = torch.zeros(3, NUM, dtype=torch.bool).scatter(1, seen[0], True)
    assert (kept | mask.hidden).all()  # what is dropped is hidden
    assert features.tokens.shape == (3, NUM - num_hidden, 48)


def test_mages_decoder_is_filled_with_the_class_slots_feature():
    backbone, objective = build("mage")
    ids, mask = tokens_for(backbone, 2), Mask.cut(torch.rand(2, NUM, generator=generator(5)), 12)
    inputs = []
    decode = objective.decoder.forward
    objective.decoder.forward = lambda x, *rest, **more: inputs.append(x) or decode(x, *rest, **more)
    objective(backbone, None, mask, Target(ids))
    front, full = inputs[0][:, :1], inputs[0][:, 1:]
    assert torch.equal(full[mask.hidden], front.expand_as(full)[mask.hidden])
    assert not (full[~mask.hidden] == front.expand_as(full)[~mask.hidden]).all(-1).any()
    assert not any("mask" in name for name, _ in objective.named_parameters())


def test_mages_features_are_of_all_tokens_and_leave_the_class_slot_out():
    from pretrain.evaluation.features import extract

    backbone, _ = build("mage")
    images = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=generator(0))
    found = extract(backbone, [(images, torch.zeros(4, dtype=torch.int64))]).features
    sequence = backbone(backbone.embed_tokens(backbone.tokenizer.tokens(images))).sequence
    torch.testing.assert_close(found, sequence[:, 1:].mean(1))
    assert sequence.shape == (4, 1 + NUM, 48)


@pytest.mark.parametrize(
    ("ratio", "mean", "std"),
    [(TruncatedNormalRatio(), 0.694, 0.129), (TruncatedNormalRatio(1.0, 0.25, 0.7), 0.867, 0.084)],
    ids=["MAGE", "MAR"],
)
def test_the_truncated_normal_law_has_the_published_mean(ratio, mean, std):
    shares = torch.tensor([ratio.share(generator(0, "ratio", step)) for step in range(4000)])
    assert shares.min() >= ratio.low and shares.max() <= 1
    assert shares.mean() == pytest.approx(mean, abs=0.006) and shares.std() == pytest.approx(std, abs=0.004)
    grid = Grid(16, 16)
    visible = [ratio.num_visible(grid, generator(0, "ratio", step)) for step in range(200)]
    assert visible == [256 - math.ceil(256 * share - 1e-6) for share in shares[:200].double().tolist()]


def test_mage_may_hide_everything():
    backbone, objective = build("mage")
    mask = Mask.cut(torch.rand(2, NUM), 0)
    losses, features = objective(backbone, None, mask, Target(tokens_for(backbone, 2)))
    assert losses["token"].isfinite().all() and features.tokens.shape == (2, 0, 48)
    assert MAGEConfig().num_dropped(256, 128) == 128 and MAGEConfig().num_dropped(256, 256) == 128
