"""To graphs that need none of our code: ONNX, and torch.export's pt2. Both take any number of images."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from pretrain.backbones.base import Backbone
from pretrain.backbones.illama import Illama, IllamaConfig
from pretrain.backbones.rotary import Rotary
from pretrain.backbones.vit import ViTConfig
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.export.parity import needed, proved, sample
from pretrain.export.report import Parity, Written
from pretrain.export.target import Job, Target

_ONNX, _EXPORT = "onnx", "torch-export"
_INLINE = 1_800_000_000  # bytes of weights; a file of ONNX holds less than 2 GiB, and more goes beside it


class Turns(nn.Module):
    """What `Rotary` gives for a whole grid, kept as the floats they are: ONNX cannot read bits as another type."""

    turns: Tensor

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.register_buffer("turns", rotary().clone())

    def forward(self) -> Tensor:
        """(1, L, E / 2, 2) float32."""
        return self.turns


class Encoder(nn.Module):
    """From normalised images to features, as one call."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """images (B, C, H, W) float32, normalised: (B, num_prefix + N, D)."""
        return self.backbone(self.backbone.embed(images)).sequence


def _check(config: Config, to: str) -> None:
    if not isinstance(config.backbone, ViTConfig | IllamaConfig):
        name = type(config.backbone).__name__.removesuffix("Config")
        raise ConfigError(f"--to {to}: run {config.name} trained {name}; only ViT and iLLaMA become a graph of pixels")


def _check_onnx(config: Config) -> None:
    _check(config, _ONNX)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        needed(name, _ONNX)


def _check_export(config: Config) -> None:
    _check(config, _EXPORT)


def _with_plain_tables(backbone: Backbone) -> Backbone:
    if not isinstance(backbone, Illama):
        return backbone
    copied = copy.deepcopy(backbone)
    copied.rotary = Turns(copied.rotary)  # type: ignore[assignment]  # called as a Rotary is for whole images
    return copied


def _traced(backbone: Backbone) -> torch.export.ExportedProgram:
    encoder = Encoder(_with_plain_tables(backbone)).eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(encoder, (sample(backbone).normal,), dynamic_shapes=({0: batch},), strict=False)


def _write_export(job: Job) -> Written:
    backbone = job.loaded.backbone
    torch.export.save(_traced(backbone), job.file)
    again = torch.export.load(job.file)
    with torch.no_grad():
        parity = _batches(again.module(), backbone, len(backbone.state_dict()), f"torch {torch.__version__}")
    call = f'encoder = torch.export.load("{job.final}").module()\nfeatures = encoder(images)'
    return Written("torch.export program", call, parity, notes=(_input(backbone),))


def _write_onnx(job: Job) -> Written:
    backbone, runtime = job.loaded.backbone, needed("onnxruntime", _ONNX)
    tensors = list(backbone.state_dict().values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.onnx says of itself that it uses what torch will change
        torch.onnx.export(
            _traced(backbone), (), job.file, input_names=["images"], output_names=["features"], dynamo=True,
            verbose=False, external_data=sum(t.numel() * t.element_size() for t in tensors) > _INLINE,
        )  # fmt: skip
    session = runtime.InferenceSession(str(job.file), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    parity = _batches(run, backbone, len(tensors), f"onnxruntime {runtime.__version__}")
    call = (
        f'session = onnxruntime.InferenceSession("{job.final}")\nfeatures = session.run(None, {{"images": images}})[0]'
    )
    return Written("ONNX graph", call, parity, notes=(_input(backbone),))


def _batches(run, backbone: Backbone, loaded: int, by: str) -> Parity:  # type: ignore[no-untyped-def]
    """The worse of one image and of three, where two were traced."""
    found = []
    for batch in (1, 3):
        seen = sample(backbone, batch)
        found.append(proved(run(seen.normal), seen.sequence, loaded, by))
    return max(found, key=lambda parity: parity.max_difference or 0.0)


def _input(backbone: Backbone) -> str:
    sides = (backbone.in_chans, backbone.grid.height * backbone.patch_size, backbone.grid.width * backbone.patch_size)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
    return f"images: (B, {', '.join(map(str, sides))}) float32, (pixel / 255 - mean) / std, mean {mean}, std {std}"


ONNX = Target("ONNX, by onnxruntime and others", "model.onnx", _check_onnx, _write_onnx, ("model.onnx.data",))
TORCH_EXPORT = Target("torch.export, by torch alone", "model.pt2", _check_export, _write_export)
