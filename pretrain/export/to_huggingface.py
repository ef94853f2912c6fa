"""To Hugging Face transformers: a folder that ViTModel loads, or with the decoder one that ViTMAEForPreTraining loads,
and the settings of its image processor. Names are those that versions 4 and 5 both read."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from masking.mask import Mask
from masking.rng import generator
from pretrain.backbones.layers import NORM_EPS
from pretrain.config import Config
from pretrain.errors import ConfigError
from pretrain.export.parity import by_contract, library, proved, require_names, sample
from pretrain.export.report import ExportError, Parity, Written
from pretrain.export.shapes import Shapes, Size, transformers_decoder, transformers_vit
from pretrain.export.target import Job, Target
from pretrain.export.tensors import renamed, require_plain, tensors_of
from pretrain.init.dialects import channels_last
from pretrain.objectives.pixel import PixelMAE, PixelMAEConfig
from pretrain.objectives.teacher_huggingface import own_name
from pretrain.timm_shim import ensure_torchvision

_ENCODER, _DECODER = "huggingface", "huggingface-mae"
_WHY = "transformers is not installed here"


def _write_encoder(job: Job) -> Written:
    backbone = job.loaded.backbone
    wanted = transformers_vit(Size.of(backbone))
    found = renamed(tensors_of(backbone), wanted, own_name)
    _save(job, found, {"architectures": ["ViTModel"], "model_type": "vit", **_settings(job)}, "ViTImageProcessor")
    call = f'transformers.ViTModel.from_pretrained("{job.final.parent}", add_pooling_layer=False)'
    return Written("ViTModel", call, _encoder_parity(job, found, wanted))


def _write_decoder(job: Job) -> Written:
    backbone, objective, size = job.loaded.backbone, job.loaded.objective, Size.of(job.loaded.backbone)
    assert isinstance(objective, PixelMAE)
    config = objective.config
    encoder = {f"vit.{name}": shape for name, shape in transformers_vit(size).items()}
    decoder = transformers_decoder(size, config.decoder_width, config.decoder_depth)
    own = tensors_of(backbone)
    found = renamed(own, encoder, lambda name: own_name(name.removeprefix("vit.")))
    found |= renamed(_decoder_tensors(objective, own["patch_embed.proj.weight"]), decoder, _decoder_name)
    num = backbone.grid.num_patches
    visible = _num_visible(job)
    settings = {
        "architectures": ["ViTMAEForPreTraining"], "model_type": "vit_mae", **_settings(job),
        "decoder_hidden_size": config.decoder_width, "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads, "decoder_intermediate_size": 4 * config.decoder_width,
        "mask_ratio": _ratio(num, visible), "norm_pix_loss": config.norm_pixels,
    }  # fmt: skip
    _save(job, found, settings, "ViTImageProcessor")
    call = f'transformers.ViTMAEForPreTraining.from_pretrained("{job.final.parent}")'
    notes = ("its loss is over all hidden patches, and this run's over a share of them",) if config.chooses else ()
    parity = _decoder_parity(job, objective, found, {**encoder, **decoder}, visible)
    return Written("ViTMAEForPreTraining", call, parity, notes=notes)


def _check_encoder(config: Config) -> None:
    require_plain(config, _ENCODER)


def _check_decoder(config: Config) -> None:
    require_plain(config, _DECODER)
    if not isinstance(config.objective, PixelMAEConfig):
        raise ConfigError(
            f"--to {_DECODER} needs MAE's decoder, and run {config.name} trained {type(config.objective).__name__}; "
            f"--to {_ENCODER} writes the encoder alone"
        )
    height, width = config.data.image_size
    reasons = (
        (height != width, f"data.image_size={height},{width}, and ViTMAE takes square images only"),
        (config.mto is not None, "mto, which acts in the decoder's blocks, and ViTMAE has no such thing"),
        (any(weight != 1 for weight in config.objective.decoder_weights), "objective.decoder_weights other than 1, and "
         "in ViTMAE's decoder every key counts alike"),
    )  # fmt: skip
    for is_so, reason in reasons:
        if is_so:
            raise ConfigError(f"--to {_DECODER}: run {config.name} has {reason}; --to {_ENCODER} writes the encoder")


def _settings(job: Job) -> dict[str, Any]:
    """What both kinds of config.json say of the encoder."""
    backbone, config = job.loaded.backbone, job.loaded.config.backbone
    width, depth, heads = config.dimensions()
    height, wide = (side * backbone.patch_size for side in (backbone.grid.height, backbone.grid.width))
    return {
        "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02, "layer_norm_eps": NORM_EPS, "qkv_bias": True, "num_channels": backbone.in_chans,
        "image_size": height if height == wide else [height, wide], "patch_size": backbone.patch_size,
    }  # fmt: skip


def _save(job: Job, found: dict[str, Tensor], settings: dict[str, Any], processor: str) -> None:
    backbone = job.loaded.backbone
    save_file(found, job.file, {"format": "pt"})
    (job.folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    height, width = (side * backbone.patch_size for side in (backbone.grid.height, backbone.grid.width))
    images = {
        "image_processor_type": processor, "do_resize": True, "size": {"height": height, "width": width},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(backbone.mean), "image_std": list(backbone.std),
    }  # fmt: skip
    (job.folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")


def _decoder_tensors(objective: PixelMAE, projection: Tensor) -> dict[str, Tensor]:
    """The decoder's, with its fixed positions, and the pixels of a patch in the order of transformers."""
    own = tensors_of(objective.decoder)
    own["pos_embed"] = objective.decoder.pos_embed.detach().clone()
    for name in ("head.weight", "head.bias"):
        own[name] = channels_last(own[name], projection)
    return own


def _decoder_name(name: str) -> str:
    return own_name(name.removeprefix("decoder.").removeprefix("decoder_")).replace("pred.", "head.")


def _num_visible(job: Job) -> int:
    mask = job.loaded.config.mask
    assert mask is not None
    return mask.ratio.num_visible(job.loaded.backbone.grid, generator(0, "export"))


def _ratio(num: int, visible: int) -> float:
    """A mask_ratio of which transformers' int(N * (1 - ratio)) makes visible."""
    whole, nudged = round((num - visible) / num, 6), (num - visible - 0.5) / num
    return whole if int(num * (1 - whole)) == visible else nudged


def _transformers() -> Any:
    ensure_torchvision()
    found = library("transformers")
    if found is not None:
        found.utils.logging.disable_progress_bar()
    return found


@torch.no_grad()
def _encoder_parity(job: Job, found: dict[str, Tensor], wanted: Shapes) -> Parity:
    transformers = _transformers()
    if transformers is None:
        return by_contract(found, wanted, "transformers' ViTModel", _WHY)
    require_names(found, wanted, "transformers' ViTModel")
    model = _loaded(transformers.ViTModel, job, add_pooling_layer=False)
    seen = sample(job.loaded.backbone)
    theirs = model(seen.normal).last_hidden_state
    return proved(theirs, seen.sequence, len(found), f"transformers {transformers.__version__}")


@torch.no_grad()
def _decoder_parity(job: Job, objective: PixelMAE, found: dict[str, Tensor], wanted: Shapes, visible: int) -> Parity:
    """Features of whole images, predictions of hidden patches, and their mean squared error, under the same mask."""
    transformers = _transformers()
    if transformers is None:
        return by_contract(found, wanted, "transformers' ViTMAEForPreTraining", _WHY)
    require_names(found, wanted, "transformers' ViTMAEForPreTraining")
    model = _loaded(transformers.ViTMAEForPreTraining, job)
    backbone, by = job.loaded.backbone, f"transformers {transformers.__version__}"
    seen = sample(backbone)
    noise = torch.rand(len(seen.images), backbone.grid.num_patches, generator=generator(0, "export", "mask"))
    mask = Mask.from_order(noise.argsort(1), visible)
    sequence = backbone(backbone.embed(seen.images, mask.ids_keep), mask.ids_keep).sequence
    ours = objective.decoder(sequence, mask.ids_keep, mask.ids_mask)
    out = model(seen.normal, noise=noise)
    logits = channels_first_rows(out.logits, backbone.patch_size, backbone.in_chans)
    theirs = logits.gather(1, mask.ids_mask[..., None].expand_as(ours))
    loss = (ours - objective.pixels(seen.images, mask.ids_mask)).square().mean()
    predictions = proved(theirs, ours, len(found), f"{by} in predictions")
    proved(out.loss[None], loss[None], len(found), f"{by} in the loss")
    model.config.mask_ratio = 0.0
    ascending = torch.arange(backbone.grid.num_patches).expand(len(noise), -1) / noise.shape[1]
    whole = model.vit(seen.normal, noise=ascending).last_hidden_state
    features = proved(whole, seen.sequence, len(found), f"{by} in features")
    assert predictions.max_difference is not None
    said = (
        f"{by}; predictions differ by {predictions.max_difference:.1e} of up to {predictions.scale:.1f}, losses agree"
    )
    return Parity(len(found), features.max_difference, features.scale, said)


def channels_first_rows(values: Tensor, patch_size: int, in_chans: int) -> Tensor:
    """Predictions (B, N, P) laid out "(row column channel)" as ours are, "(channel row column)"."""
    order = torch.arange(in_chans * patch_size**2).reshape(patch_size, patch_size, in_chans)
    return values[..., order.permute(2, 0, 1).flatten()]


def _loaded(kind: Any, job: Job, **options: Any) -> Any:
    """A model of transformers from the draft. Raises ExportError where it does not load whole."""
    model, info = kind.from_pretrained(str(job.folder), output_loading_info=True, **options)
    bad = {key: sorted(map(str, value))[:5] for key, value in info.items() if value and key != "error_msgs"}
    if bad:
        raise ExportError(f"transformers' {kind.__name__} says {bad}; nothing was written")
    return model.eval()


_BESIDE = ("config.json", "preprocessor_config.json")
HUGGINGFACE = Target(
    "transformers' ViTModel", "model.safetensors", _check_encoder, _write_encoder, _BESIDE, only_folder=True,
    library_name="transformers",
)  # fmt: skip
HUGGINGFACE_MAE = Target(
    "transformers' ViTMAEForPreTraining, with the decoder", "model.safetensors", _check_decoder, _write_decoder,
    _BESIDE, only_folder=True, with_objective=True, library_name="transformers",
)  # fmt: skip
