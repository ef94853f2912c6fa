"""`lacuna export`: a run's encoder in the form of whoever reads it next."""

from __future__ import annotations

import argparse
from pathlib import Path

TARGETS = {  # as pretrain/export/export.py has them; torch is not loaded for --help
    "timm": "timm, by name",
    "huggingface": "transformers' ViTModel",
    "huggingface-mae": "transformers' ViTMAEForPreTraining, with MAE's decoder",
    "mmseg": "mmsegmentation's MAE backbone",
    "mmdet": "mmpretrain's VisionTransformer, for mmdet and mmseg",
    "detectron2": "ViTDet",
    "plain": "any encoder, iLLaMA too, with a loader of ours",
    "onnx": "a graph for onnxruntime and others",
    "torch-export": "a graph for torch alone",
}


def add_options(made: argparse.ArgumentParser) -> None:
    """What `lacuna export` may be told."""
    made.add_argument("run", type=Path, help="run directory, for example runs/first")
    made.add_argument(
        "--to", default="timm", metavar="NAME", choices=tuple(TARGETS), help="who reads it (default timm)"
    )
    made.add_argument("-o", "--out", type=Path, required=True, help="folder to write, or a file: vit.safetensors")
    made.add_argument(
        "--weights", choices=("ema", "model"), default="ema", help="which weights (default ema, where kept)"
    )
    made.add_argument("--step", type=int, help="checkpoint of this step (default: the newest)")
    made.add_argument("--image-size", metavar="H,W", help="resize positions for this size (default: as trained)")
    made.add_argument("--license", help="licence to name in config and card (default: none is named)")
    made.add_argument("--force", action="store_true", help="replace existing files")
    width = max(map(len, TARGETS))
    made.epilog = "names for --to:\n" + "\n".join(f"  {name:<{width}}  {says}" for name, says in TARGETS.items())


def export(options: argparse.Namespace) -> None:
    """Writes the files and a model card; prints what the proof saw, and how to load them."""
    from launch.verbs import sides
    from pretrain.export.export import export as write

    report = write(
        options.run,
        options.to,
        options.out,
        weights=options.weights,
        step=options.step,
        image_size=None if options.image_size is None else sides(options.image_size),
        license_name=options.license,
        force=options.force,
    )
    print(report)
