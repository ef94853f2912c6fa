"""Stored tokens are the tokens, mirrored images have their own, and what they are is checked before anything runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from launch.cli import main
from masking.mask import Grid, Mask
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import open_shards
from pretrain.objectives.diffusion import DiffusionConfig
from pretrain.objectives.mar import MARConfig
from pretrain.tokenizers.base import Kind, Tokenizer
from pretrain.tokenizers.frozen import TokenizerConfig, frozen_tokenizer
from pretrain.tokenizers.stored import StoredTokens, store, stored_kind
from pretrain.tokenizers.token_vit import TokenViTConfig
from tests import chaos
from tests.test_generation_runs import CASE, lines, settings, train
from tests.zygote import shared

GRID = Grid(3, 5)


class Nothing(Tokenizer):
    """A tokenizer that is never asked."""


@pytest.mark.parametrize("kind", [Kind(4, 60_000, 5, 3), Kind(4, None, 7, 3)], ids=["codes", "values"])
def test_what_is_stored_comes_back_and_a_mirrored_array_gives_the_mirrored_images_tokens(kind):
    rng = torch.Generator().manual_seed(0)
    shape = (4, GRID.num_patches)
    if kind.num_codes:
        plain, mirrored = (torch.randint(0, kind.num_codes, shape, generator=rng) for _ in range(2))
    else:
        plain, mirrored = (torch.randn(*shape, 7, generator=rng).half().float() for _ in range(2))
    array = store(plain, mirrored, GRID)
    assert array.dtype == torch.uint8 and array.shape == (4, stored_kind(kind).in_chans, 3, 5)
    reader = StoredTokens(Nothing(), stored_kind(kind))
    assert torch.equal(reader.tokens(array), plain)
    assert torch.equal(reader.tokens(array.flip(-1)), mirrored)
    both = torch.cat([array[:2].flip(-1), array[2:]])
    assert torch.equal(reader.tokens(both), torch.cat([mirrored[:2], plain[2:]]))


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of images of several sizes, every one of which can be read."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    with wds.ShardWriter(f"{folder}/some-%04d.tar", maxcount=50, verbose=0) as writer:
        for number in range(90):
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            side = 32 if number % 3 else 48
            buffer = io.BytesIO()
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
            writer.write({"__key__": f"{number:06d}", "png": buffer.getvalue(), "cls": number % 5})
    open_shards(f"{folder}/*.tar")
    return f"{folder}/*.tar"


@pytest.fixture(scope="module", params=["fsq", "kl"])
def tokenizer(request, tmp_path_factory: pytest.TempPathFactory, pattern: str) -> tuple[str, Path]:
    run_dir = tmp_path_factory.mktemp("tokenizers") / request.param
    more = ("backbone.width=8", "backbone.blocks=1", "tracking.panels_every=none")
    train(run_dir, f"tokenizer_{request.param}_cifar", pattern, *more)
    return request.param, run_dir


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, pattern: str, tokenizer: tuple[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "shards"
    assert main(["tokenize", str(tokenizer[1]), pattern, str(out), "--batch-size", "16", "--workers", "0"]) == 0
    return out


MODELS = {
    "fsq": ("maskgit_cifar", ("backbone.classes=5",)),
    "kl": ("mar_cifar", ("backbone.classes=5", "backbone.num_prefix=4", "objective.decoder_depth=1",
                         "objective.head.width=32", "objective.head.depth=1", "backbone.tokenizer.scale=2")),
}  # fmt: skip


def model(name: str, run_dir: Path) -> tuple[str, tuple[str, ...]]:
    config, own = MODELS[name]
    narrow = ("backbone.width=48", "backbone.depth=1", "backbone.heads=4", "backbone.dropout=0", "steps=4")
    path = (f"backbone.tokenizer.path={run_dir}", "backbone.tokenizer.patch_size=none")
    return config, (*own, *narrow, *path, "data.crop_scale=1,1", "data.crop_aspect=1,1", "tracking.panels_every=none")


def test_a_run_on_stored_tokens_is_the_run_on_their_images(
    tmp_path: Path, pattern: str, tokenizer: tuple[str, Path], tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, more = model(*tokenizer)
    about = json.loads((tokens / "manifest.json").read_text())["tokens"]
    stored = (f"data.image_size={about['grid'][0]},{about['grid'][1]}", f"data.in_chans={about['channels']}",
              "backbone.tokenizer.stored=true")  # fmt: skip
    train(tmp_path / "images", config, pattern, *more)
    train(tmp_path / "tokens", config, f"{tokens}/*.tar", *more, *stored)
    images, read = (lines(tmp_path / name) for name in ("images", "tokens"))
    assert [line["loss"] for line in read] == pytest.approx([line["loss"] for line in images], rel=1e-3)
    if tokenizer[0] == "fsq":  # an id has no rounding: mirrored or not, every step trains on the very same ones
        assert [line["loss_hex"] for line in read] == [line["loss_hex"] for line in images]
    asked = ["generate", str(tmp_path / "tokens"), "--num", "12", "--steps", "4"]
    assert main([*asked, "--diffusion-steps", "3", "--compare", pattern, "--space", str(tmp_path / "images")]) == 0
    found = json.loads((tmp_path / "tokens" / "samples" / "samples.json").read_text())
    assert found["score"]["real_images"] == 90
    assert np.load(tmp_path / "tokens" / "samples" / "samples.npz")["images"].shape == (12, 3, 32, 32)


def test_a_shard_of_tokens_holds_the_tokens_of_its_images_under_their_keys_and_labels(
    pattern: str, tokenizer: tuple[str, Path], tokens: Path
) -> None:
    source, found = open_shards(pattern), open_shards(f"{tokens}/*.tar")
    assert found.lengths.tolist() == source.lengths.tolist() == [50, 40]
    assert found.labels(1).tolist() == source.labels(1).tolist()
    assert found.key(1, 7) == source.key(1, 7)
    array = np.load(io.BytesIO(found.read(1, 7)["npy"]))
    pixels = np.asarray(Image.open(io.BytesIO(source.read(1, 7)["png"])))
    assert pixels.shape == (48, 48, 3) if (50 + 7) % 3 == 0 else (32, 32, 3)
    plain = frozen_tokenizer(TokenizerConfig(str(tokenizer[1])))
    image = torch.nn.functional.interpolate(
        torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], size=(32, 32), mode="bicubic", antialias=True
    )
    reader = frozen_tokenizer(TokenizerConfig(str(tokenizer[1]), stored=True), array.shape[2])
    stored = torch.from_numpy(array).permute(2, 0, 1)[None]
    for view, pixel in ((stored, image), (stored.flip(-1), image.flip(-1))):
        torch.testing.assert_close(reader.tokens(view), plain.tokens(pixel), rtol=2e-3, atol=2e-3)
    ids, grid = reader.tokens(stored), Grid(8, 8)
    assert torch.equal(reader.images(ids, grid), plain.images(ids, grid))


def test_it_goes_on_where_it_was_and_takes_no_other_folder(
    tmp_path: Path, pattern: str, tokenizer: tuple[str, Path], tokens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["tokenize", str(tokenizer[1]), pattern, str(tokens), "--workers", "0"]
    second, kept = tokens / "tokens-000001.tar", (tokens / "tokens-000000.tar").stat().st_mtime_ns
    before = second.read_bytes()
    second.unlink()
    assert main(again) == 0
    assert second.read_bytes() == before and (tokens / "tokens-000000.tar").stat().st_mtime_ns == kept
    assert "tokens of 90 images in 2 shards" in capsys.readouterr().out
    manifest = read_manifest(tokens)
    assert manifest is not None and manifest.about["tokens"]["grid"] == [8, 8]
    assert main([*again, "--image-size", "64,64"]) == 78
    assert "holds other shards, or tokens of other images or weights; name another folder" in capsys.readouterr().err
    assert main(["tokenize", str(tokenizer[1]), pattern, str(Path(pattern).parent)]) == 78
    assert main([*again[:3], str(tmp_path / "new"), "--image-size", "30,32"]) == 78
    assert "each must be a multiple of 4, the side of the tokenizer's patches" in capsys.readouterr().err


def test_what_the_shards_hold_is_asked_before_anything_runs(
    tmp_path: Path, pattern: str, tokenizer: tuple[str, Path], tokens: Path
) -> None:
    config, more = model(*tokenizer)
    channels = 5 if tokenizer[0] == "fsq" else 1 + 8 * 8
    stored = ("backbone.tokenizer.stored=true", f"data.in_chans={channels}", "data.image_size=8,8")
    other = tmp_path / "other"
    train(other, f"tokenizer_{tokenizer[0]}_cifar", pattern, "backbone.width=8", "backbone.blocks=1", "steps=1",
          "tracking.panels_every=none")  # fmt: skip
    six = "data.image_size=6,6"
    wrong = {
        "holds no tokens; write some with lacuna tokenize": (pattern, *stored),
        "holds tokens, and no images": (f"{tokens}/*.tar",),
        "tokens of another tokenizer, or of other weights": (
            f"{tokens}/*.tar", *stored, f"backbone.tokenizer.path={other}"
        ),
        f"holds 8 x 8 tokens of each image, and {six}": (f"{tokens}/*.tar", *stored, six),
        f"data.in_chans=3; set data.in_chans={channels}": (f"{tokens}/*.tar", *stored, "data.in_chans=3"),
        "data.crop_scale=(0.5, 1) is for images; set data.crop_scale=1,1": (
            f"{tokens}/*.tar", *stored, "data.crop_scale=0.5,1"
        ),
    }  # fmt: skip
    for words, (data, *settled) in wrong.items():
        given = {"config": config, "overrides": settings(tmp_path / "run", data, *more, *settled)}
        (refused,) = shared().run(CASE, 1, given)
        assert refused.code == 78 and words in refused.output, (words, refused.output[-2000:])


def test_an_image_that_cannot_be_read_is_left_out_and_named(
    tmp_path: Path, tokenizer: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = chaos.make_shards(tmp_path / "broken", images=40, per_shard=40)
    out = tmp_path / "tokens"
    assert main(["tokenize", str(tokenizer[1]), broken, str(out), "--workers", "0"]) == 0
    assert "left out: 000003" in capsys.readouterr().out
    source, found = open_shards(broken), open_shards(f"{out}/*.tar")
    kept = [source.key(0, place) for place in range(40) if source.key(0, place) != "000003"]
    assert [found.key(0, place) for place in range(39)] == kept


@pytest.mark.parametrize("tokenizer", ["kl"], indirect=True)
def test_mar_draws_sampled_tokens_anew_by_numbers_of_their_own(tokenizer: tuple[str, Path]) -> None:
    run_dir = tokenizer[1]
    named = TokenizerConfig(str(run_dir), scale=2.0)
    frozen, grid, rng = frozen_tokenizer(named), Grid(8, 8), torch.Generator().manual_seed(0)
    config = TokenViTConfig(named, "tiny", num_prefix=2, width=48, depth=1, heads=4, dropout=0.0)
    backbone = config.build(grid, 3, (0.5,) * 3, (0.25,) * 3)
    head = DiffusionConfig(width=32, depth=1)
    objective = MARConfig(decoder_depth=1, head=head).build(backbone)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=rng)
    target = objective.target(images)
    assert target.value is not None and target.value.shape == (2, 64, 16)
    torch.testing.assert_close(frozen.draw(target.value), frozen.tokens(images))
    noise = torch.rand(2, 64 * 8, generator=rng)
    torch.testing.assert_close(frozen.draw(target.value, noise), frozen.tokens(images, noise))
    total = MARConfig(decoder_depth=1, head=head).num_draws(config, grid)
    assert total == 1 + 64 * (head.num_draws(8) + 8)
    numbers, mask = torch.rand(2, total, generator=rng), Mask.cut(torch.rand(2, 64, generator=rng), 20)
    seen = [objective(backbone, images, mask, target, given)[1].tokens for given in (numbers, numbers.clone())]
    assert torch.equal(*seen)
    numbers[:, -64 * 8 :] = torch.rand(2, 64 * 8, generator=rng)
    assert not torch.equal(objective(backbone, images, mask, target, numbers)[1].tokens, seen[0])
