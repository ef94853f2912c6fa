"""The tokenizer that generation learns on, and the one copy of it that a process keeps.

It belongs to no module: neither DeepSpeed nor a checkpoint, nor `model.train()`, ever sees it. It is read once in a
process, never trained, and computes in float32 whatever the number format of the run: an id does not depend on it."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from masking.mask import Grid
from pretrain import strict_json
from pretrain.config_json import from_json
from pretrain.engine.published import encoder_of, read_newest
from pretrain.errors import CheckpointError, ConfigError
from pretrain.ranges import AT_LEAST_1, POSITIVE, Range, check_ranges
from pretrain.tokenizers.base import Kind, Tokenizer
from pretrain.tokenizers.builtin import Palette, Pixels
from pretrain.tokenizers.published import SUFFIXES, PixelRange, published_tokenizer
from pretrain.tokenizers.stored import StoredTokens, stored_kind
from pretrain.tokenizers.trained import ConvTokenizerConfig

_BUILTIN = ("pixels", "palette")
_HERE = "backbone.tokenizer."
_RANGES: dict[str, Range] = {"patch_size": AT_LEAST_1, "scale": POSITIVE}


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer by name. Nothing is ever downloaded."""

    path: str  # pixels or palette, without weights; the directory of a run that trained a tokenizer; a published file
    weights: Literal["ema", "model"] | None = None  # which weights of a run; None: ema, where the run keeps that
    patch_size: int | None = None  # side of a patch of pixels and palette; None: the tokenizer's own
    scale: float = 1.0  # factor of a run's continuous tokens, one over their deviation; .2325 in MAR
    stored: bool = False  # data.train holds tokens that `lacuna tokenize` wrote with it, and no images
    pixels: PixelRange | None = None  # what a published file reads; None: 0..1 where it halves by means, else -1..1

    @property
    def is_builtin(self) -> bool:
        """Whether it needs no file."""
        return self.path in _BUILTIN

    @property
    def is_file(self) -> bool:
        """Whether it is a file that somebody published."""
        return self.path.endswith(SUFFIXES)

    def check(self) -> None:
        """Raises ConfigError for settings that cannot be meant, or would have no effect; no file is looked at."""
        check_ranges(vars(self), _RANGES, _HERE)
        if self.is_builtin and self.patch_size is None:
            raise ConfigError(f"{_HERE}path={self.path} needs {_HERE}patch_size, the side of a patch in pixels")
        if not self.is_builtin and self.patch_size is not None:
            raise ConfigError(
                f"{_HERE}patch_size={self.patch_size} has no effect: {_HERE}path={self.path} has its own; set "
                f"{_HERE}patch_size=none, or {_HERE}path to pixels or palette"
            )
        if self.is_file and self.weights is not None:
            raise ConfigError(f"{_HERE}weights={self.weights} has no effect on a file; set {_HERE}weights=none")
        if self.pixels is not None and not self.is_file:
            raise ConfigError(f"{_HERE}pixels={self.pixels} is for published files; set {_HERE}pixels=none")
        for name, off in (("weights", None), ("scale", 1.0), ("stored", False)):
            if self.is_builtin and getattr(self, name) != off:
                raise ConfigError(
                    f"{_HERE}{name}={getattr(self, name)} has no effect: {self.path} has no weights and its own scale, "
                    f"and nothing that would be worth storing; set {_HERE}{name}={'none' if off is None else off}"
                )

    def kind(self, in_chans: int | None = None) -> Kind:
        """What is known of it before its weights are read. Raises ConfigError where there is no such tokenizer, or none
        for images of in_chans channels; None: of as many as it has."""
        if self.path == "pixels":
            return _kind_of(Pixels(self.patch_size or 1, in_chans or 3))
        kind = self.own_kind()
        if self.stored:
            kind = stored_kind(kind)
        if in_chans not in (None, kind.in_chans) and self.stored:
            raise ConfigError(
                f"{_HERE}stored=true: tokens of {_HERE}path={self.path} are stored in {kind.in_chans} channels, and "
                f"data.in_chans={in_chans}; set data.in_chans={kind.in_chans}"
            )
        if in_chans not in (None, kind.in_chans):
            raise ConfigError(
                f"{_HERE}path={self.path} is a tokenizer of {kind.in_chans} channels, and data.in_chans={in_chans}; "
                "make them equal"
            )
        if kind.num_codes is not None and self.scale != 1:
            raise ConfigError(
                f"{_HERE}scale={self.scale} has no effect: the tokens of {_HERE}path={self.path} are ids; set "
                f"{_HERE}scale=1"
            )
        return kind

    def own_kind(self) -> Kind:
        """What is known of it as it is on images, whether or not its tokens are stored."""
        if self.is_builtin:
            return _kind_of(Palette(self.patch_size or 1))
        return published_tokenizer(self.path, self.pixels).kind if self.is_file else _run(self.path).kind


class FrozenTokenizer:
    """A tokenizer that is not trained: in eval mode, without gradients, outside of every module."""

    def __init__(self, tokenizer: Tokenizer, kind: Kind, scale: float, paints: Kind | None = None) -> None:
        self.kind = kind
        self.paints = paints or kind  # of the images that it makes of tokens
        self._tokenizer = tokenizer.eval().requires_grad_(False)  # float32, on the CPU
        self._scale = scale
        self._copies: dict[torch.device, Tokenizer] = {torch.device("cpu"): self._tokenizer}

    @torch.no_grad()
    def tokens(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `Tokenizer.tokens`, where images are; continuous tokens times the scale."""
        with torch.autocast(images.device.type, enabled=False):
            found = self._on(images.device).tokens(images, noise)
        return found if self._scale == 1 else found * self._scale

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """As `Tokenizer.moments`, where images are; without the scale."""
        with torch.autocast(images.device.type, enabled=False):
            return self._on(images.device).moments(images)

    @torch.no_grad()
    def draw(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """As `Tokenizer.draw`, times the scale."""
        with torch.autocast(moments.device.type, enabled=False):
            return self._on(moments.device).draw(moments, noise) * self._scale

    @torch.no_grad()
    def images(self, tokens: Tensor, grid: Grid) -> Tensor:
        """As `Tokenizer.images`, where tokens are, which `tokens` has made or could have."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self._on(tokens.device).images(tokens if self._scale == 1 else tokens.float() / self._scale, grid)

    @cached_property
    def digest(self) -> str:
        """Which weights it has, as a hash of them all: who reads stored tokens needs the very tokenizer of these."""
        found = hashlib.sha256()
        for name, tensor in sorted(self._tokenizer.state_dict().items()):
            found.update(name.removeprefix("made_by.").encode())
            found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def _on(self, device: torch.device) -> Tokenizer:
        if device not in self._copies:
            self._copies[device] = copy.deepcopy(self._tokenizer).to(device)
        return self._copies[device]


@cache
def frozen_tokenizer(config: TokenizerConfig, in_chans: int = 3) -> FrozenTokenizer:
    """The tokenizer of config for images of in_chans channels: read from its files once in a process, whoever asks.
    Raises ConfigError where there is none, or none that can be used. torch's own random state is left as it was."""
    kind = config.kind(in_chans)
    if config.path == "pixels":
        return FrozenTokenizer(Pixels(kind.patch_size, in_chans), kind, 1.0)
    if config.path == "palette":
        return FrozenTokenizer(Palette(kind.patch_size), kind, 1.0)
    if config.is_file:
        tokenizer: Tokenizer = published_tokenizer(config.path, config.pixels)
    else:
        tokenizer = _read(config.path, config.weights or "ema")
    if config.stored:
        return FrozenTokenizer(StoredTokens(tokenizer, kind), kind, config.scale, config.own_kind())
    return FrozenTokenizer(tokenizer, kind, config.scale)


@dataclass(frozen=True)
class _Run:
    """What the config of a run says."""

    backbone: ConvTokenizerConfig
    in_chans: int
    image_size: tuple[int, int]

    @property
    def kind(self) -> Kind:
        return self.backbone.kind(self.in_chans)


@cache
def _run(path: str) -> _Run:
    source = Path(path) / "config.json"
    if not source.is_file():
        raise ConfigError(
            f"{_HERE}path={path} is neither {' nor '.join(_BUILTIN)}, nor a file ({', '.join(SUFFIXES)}), nor a run: "
            f"there is no {source}; train a tokenizer first (lacuna train configs/tokenizer_fsq_cifar.py), or name one "
            "that is there"
        )
    try:
        settings: dict[str, Any] = strict_json.loads(source.read_text())
        backbone, data = from_json(settings["backbone"], str(source)), settings["data"]
        in_chans, (height, width) = int(data["in_chans"]), data["image_size"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{_HERE}path={path}: {source} cannot be read as the config of a run ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(backbone, ConvTokenizerConfig):
        raise ConfigError(
            f"{_HERE}path={path} is a run that trained {type(backbone).__name__}, which is no tokenizer; train one "
            "with configs/tokenizer_fsq_cifar.py, say"
        )
    return _Run(backbone, in_chans, (height, width))


def _read(path: str, weights: str) -> Tokenizer:
    """The tokenizer in the newest checkpoint of the run at path that verifies."""
    run = _run(path)
    height, width = (side // run.backbone.patch_size for side in run.image_size)
    with torch.random.fork_rng(devices=[]):
        tokenizer = run.backbone.build(Grid(height, width), run.in_chans, (), ())
    try:
        tokenizer.load_state_dict(encoder_of(read_newest(Path(path), weights).state))
    except (CheckpointError, RuntimeError) as error:
        raise ConfigError(f"{_HERE}path={path}: {' '.join(str(error).split())[:400]}") from error
    return tokenizer


def _kind_of(tokenizer: Tokenizer) -> Kind:
    return Kind(tokenizer.patch_size, tokenizer.num_codes, tokenizer.num_values, tokenizer.in_chans)
