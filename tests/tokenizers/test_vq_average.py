"""Codes that are averages of what chose them: by hand, over micro-batches and processes, and codes nobody chooses."""

from pathlib import Path

import pytest
import torch

from pretrain.engine.load import load_backbone
from pretrain.errors import ConfigError
from pretrain.tokenizers.vq_average import AveragedVQConfig
from tests import chaos
from tests.test_generation_runs import lines, stop_early, train

SMALL = ("backbone.width=8", "backbone.quantiser.num_codes=32", "backbone.quantiser.code_dim=4")
GO, SKIP = torch.zeros(()), torch.ones(())


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    return chaos.make_shards(tmp_path_factory.mktemp("shards"))


def quantiser(num_codes=16, code_dim=2, **more):
    torch.manual_seed(0)
    return AveragedVQConfig(num_codes, code_dim, **more).build()


def latents_of(batch, tokens=16, dim=2, seed=1):
    return torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(seed))


def test_a_code_moves_to_the_average_of_what_chose_it_by_hand():
    vq = quantiser(decay=0.5, revive_ratio=0)
    vq.codebook.copy_(torch.arange(32.0).view(16, 2))  # code k is (2k, 2k + 1)
    vq.sums.copy_(vq.codebook)
    found = vq(torch.tensor([[[0.2, 1.0], [0.0, 1.6], [30.0, 31.0]]]))
    assert found.ids.tolist() == [[0, 0, 15]]
    vq.after_update(GO)
    # code 0: uses 0.5 * 1 + 0.5 * 2, sums 0.5 * (0, 1) + 0.5 * (0.2, 2.6)
    torch.testing.assert_close(vq.codebook[0], torch.tensor([0.1, 1.8]) / 1.5)
    assert vq.uses.tolist() == [1.5, *[0.5] * 14, 1.0]
    torch.testing.assert_close(vq.codebook[1:], torch.arange(2.0, 32.0).view(15, 2))


def test_micro_batches_count_as_one_batch_and_what_is_only_looked_at_does_not():
    one, two = quantiser(), quantiser()
    latents = latents_of(6)
    one(latents)
    with torch.no_grad():
        two(latents_of(3, seed=9))
    two.eval()(latents_of(3, seed=8))
    two.train()
    two(latents[:2])
    two(latents[2:])
    for vq in (one, two):
        vq.after_update(GO)
    for name in ("codebook", "uses", "sums"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name))


def test_a_skipped_step_moves_nothing_even_where_its_latents_are_not_finite():
    vq = quantiser()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(torch.full((1, 4, 2), torch.nan))
    vq.after_update(SKIP)
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())
    vq.after_update(GO)  # nothing was seen since
    assert torch.equal(vq.codebook, before["codebook"])


def test_codes_that_nobody_chooses_come_to_where_latents_are():
    """All latents near one far point: without revival one code has them all."""
    near = torch.tensor([50.0, 50.0]) + latents_of(8, 32)
    used = {}
    for ratio in (0.0, 0.05):
        vq = quantiser(decay=0.9, revive_ratio=ratio)
        for _ in range(60):
            vq(near)
            vq.after_update(GO)
        used[ratio] = vq.eval()(near).ids.unique().numel()
    assert used[0.0] <= 2 and used[0.05] >= 12


def test_settings_that_cannot_be_meant_are_refused():
    for wrong in ({"decay": 1.0}, {"num_codes": 8}, {"revive_ratio": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            AveragedVQConfig(**wrong).check()


def codebook(run_dir: Path) -> torch.Tensor:
    return load_backbone(run_dir, "model", None).backbone.quantiser.codebook


def test_two_processes_keep_the_codebook_of_one(tmp_path: Path, pattern: str) -> None:
    """After a step to the last bits; later a latent between two codes may choose the other."""
    for world in (1, 2):
        train(tmp_path / f"first-{world}", "tokenizer_vq_cifar", pattern, *SMALL, "steps=1", world=world)
        train(tmp_path / f"all-{world}", "tokenizer_vq_cifar", pattern, *SMALL, world=world)
    torch.testing.assert_close(codebook(tmp_path / "first-1"), codebook(tmp_path / "first-2"), rtol=1e-6, atol=1e-7)
    alone, both = ([line["loss"] for line in lines(tmp_path / f"all-{world}")] for world in (1, 2))
    assert both == pytest.approx(alone, rel=3e-3)


def test_a_stopped_run_goes_on_exactly(tmp_path: Path, pattern: str) -> None:
    calm, asked = tmp_path / "calm", tmp_path / "asked"
    train(calm, "tokenizer_vq_cifar", pattern, *SMALL, world=2)
    stop_early(asked, "tokenizer_vq_cifar", pattern, *SMALL)
    train(asked, "tokenizer_vq_cifar", pattern, *SMALL, world=2)
    chaos.compare(calm, asked)
    assert torch.equal(codebook(calm), codebook(asked))
