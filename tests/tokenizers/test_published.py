"""Published tokenizers read from files: the numbers are those of diffusers 0.42.1 with the very weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from masking.mask import Grid
from pretrain.errors import ConfigError
from pretrain.tokenizers.frozen import TokenizerConfig, frozen_tokenizer
from pretrain.tokenizers.published import PublishedTokenizer, published_tokenizer
from tests.tokenizers.published_files import as_diffusers, latent_diffusion, maskgit

GRID = Grid(4, 6)
IMAGES = (torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24) * 37 % 251).to(torch.uint8)
NAMES = {"latent diffusion": lambda state: state, "diffusers": as_diffusers}


def opened(path: Path, state: dict[str, Tensor]) -> PublishedTokenizer:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return published_tokenizer(str(path), None).eval()


@pytest.mark.parametrize("names", NAMES)
@torch.no_grad()
def test_an_autoencoder_with_values_computes_what_diffusers_does(names: str, tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "kl.safetensors", NAMES[names](latent_diffusion()))
    assert (tokenizer.kind.patch_size, tokenizer.kind.num_values, tokenizer.kind.num_codes) == (4, 4, None)
    assert tokenizer.kind.sampled
    moments = tokenizer.moments(IMAGES)
    torch.testing.assert_close(
        torch.cat([moments[0, 5], moments[1, 23, :3]]),
        torch.tensor([0.5780445, -0.0812297, 0.5290058, -0.0444351, -0.3395836, -0.2148939, -0.4536978, -0.3474736,
                      0.8053660, -0.7789868, 0.2103685]),
        rtol=0, atol=1e-5,
    )  # fmt: skip
    images = tokenizer.images(tokenizer.tokens(IMAGES), GRID)
    assert images.shape == IMAGES.shape and images.mean().item() == pytest.approx(0.3756960, abs=1e-5)
    torch.testing.assert_close(images[1, :, 3, 7], torch.tensor([0.6663370, 0.0, 0.1463072]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", NAMES)
@torch.no_grad()
def test_an_autoencoder_with_codes_computes_what_diffusers_does(names: str, tmp_path: Path) -> None:
    tokenizer = opened(tmp_path / "vq.safetensors", NAMES[names](latent_diffusion(codes=50)))
    ids = tokenizer.tokens(IMAGES)
    assert (tokenizer.kind.num_codes, tokenizer.kind.num_values, tokenizer.kind.sampled) == (50, 8, False)
    first = [25, 45, 12, 37, 45, 45, 12, 2, 2, 32, 45, 45, 45, 25, 21, 25, 32, 10, 25, 32, 20, 45, 20, 37]
    assert ids[0].tolist() == first
    images = tokenizer.images(ids, GRID)
    assert images.mean().item() == pytest.approx(0.3736610, abs=1e-5)
    torch.testing.assert_close(images[0, :, 3, 7], torch.tensor([0.7098083, 0.0396276, 0.5230669]), rtol=0, atol=1e-5)


def plain(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """One layer of the file, by its name."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def plain_block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    inner = x
    for i in (1, 2):
        norm = F.group_norm(inner, 32, state[f"{name}.norm{i}.weight"], state[f"{name}.norm{i}.bias"], 1e-6)
        inner = plain(state, f"{name}.conv{i}", norm * norm.sigmoid())
    return inner + (plain(state, f"{name}.nin_shortcut", inner) if f"{name}.nin_shortcut.weight" in state else x)


@torch.no_grad()
def test_maskgits_halves_by_means_and_its_shortcuts_come_late(tmp_path: Path) -> None:
    state = maskgit()
    tokenizer = opened(tmp_path / "vqgan.safetensors", state)
    x = plain(state, "encoder.conv_in", IMAGES.float() / 255)
    for level in range(3):
        for block in range(2):
            x = plain_block(state, f"encoder.down.{level}.block.{block}", x)
        x = F.avg_pool2d(x, 2) if level < 2 else x
    for block in ("block_1", "block_2"):
        x = plain_block(state, f"encoder.mid.{block}", x)
    norm = F.group_norm(x, 32, state["encoder.norm_out.weight"], state["encoder.norm_out.bias"], 1e-6)
    latents = plain(state, "encoder.conv_out", norm * norm.sigmoid()).flatten(2).transpose(1, 2)
    ids = torch.cdist(latents, state["quantize.embedding.weight"]).argmin(-1)
    assert torch.equal(tokenizer.tokens(IMAGES), ids) and len(ids.unique()) > 5
    assert tokenizer.images(ids, GRID).shape == IMAGES.shape


def test_pixels_go_in_as_the_setting_says(tmp_path: Path) -> None:
    path = tmp_path / "vqgan.safetensors"
    save_file(maskgit(), path)
    kinds = {pixels: frozen_tokenizer(TokenizerConfig(str(path), pixels=pixels)) for pixels in (None, "0..1", "-1..1")}
    plain, same, other = (kinds[key].tokens(IMAGES) for key in (None, "0..1", "-1..1"))
    assert torch.equal(plain, same) and not torch.equal(plain, other)


def test_torchs_wrapped_files_are_read_and_what_else_they_hold_is_left(tmp_path: Path) -> None:
    state = latent_diffusion()
    wrapped = {f"first_stage_model.{name}": tensor for name, tensor in state.items()} | {"loss.logvar": torch.ones(1)}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "kl.ckpt")
    found = published_tokenizer(str(tmp_path / "kl.ckpt"), None)
    same = opened(tmp_path / "kl.safetensors", state)
    assert torch.equal(found.moments(IMAGES), same.moments(IMAGES))


def test_a_scale_and_noise_reach_a_published_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "kl.safetensors"
    save_file(latent_diffusion(), path)
    plain, scaled = (frozen_tokenizer(TokenizerConfig(str(path), scale=scale)) for scale in (1.0, 0.5))
    noise = torch.rand(2, 24 * 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(scaled.tokens(IMAGES, noise), plain.tokens(IMAGES, noise) * 0.5)
    assert not torch.equal(plain.tokens(IMAGES, noise), plain.tokens(IMAGES))


def test_what_is_no_tokenizer_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = str(tmp_path / "one.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        TokenizerConfig(path).kind()
    save_file({"blocks.0.weight": torch.ones(2)}, path)
    with pytest.raises(ConfigError, match=r"one\.safetensors has no tensor 'encoder\.conv_in\.weight'"):
        TokenizerConfig(path).kind()
    state = latent_diffusion()
    del state["decoder.up.1.block.0.conv2.weight"]
    save_file(state, tmp_path / "two.safetensors")
    with pytest.raises(ConfigError, match=r"no tensor 'decoder\.up\.1\.block\.0\.conv2\.weight'"):
        TokenizerConfig(str(tmp_path / "two.safetensors")).kind()
    save_file(latent_diffusion() | {"encoder.extra.weight": torch.ones(1)}, tmp_path / "three.safetensors")
    with pytest.raises(ConfigError, match=r"is not the network that its names say.*encoder\.extra"):
        TokenizerConfig(str(tmp_path / "three.safetensors")).kind()
    for config in (TokenizerConfig(path, weights="ema"), TokenizerConfig(path, patch_size=4)):
        with pytest.raises(ConfigError, match="has no effect"):
            config.check()
    with pytest.raises(ConfigError, match="is for published files"):
        TokenizerConfig("runs/one", pixels="0..1").check()
