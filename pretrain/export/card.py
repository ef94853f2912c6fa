"""The model card: what an export was made of and what it is worth, for whoever finds the file without the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.config import Config, flatten
from pretrain.engine.load import Loaded
from pretrain.export.report import ExportReport
from pretrain.export.target import Target
from pretrain.tracking.lines import read_lines

_RECIPE = (
    "epochs", "steps", "data.batch_size", "data.image_size", "data.crop_scale", "data.flip_prob", "optim.base_lr",
    "optim.weight_decay", "optim.betas", "optim.warmup", "engine.precision",
)  # fmt: skip


def card_text(
    report: ExportReport, loaded: Loaded, target: Target, license_name: str | None, run_dir: Path | None
) -> str:
    """The card of an export as Markdown, with the header that the Hugging Face hub reads; run_dir is where results of
    evaluations lie, if anywhere."""
    config = loaded.config
    header = {"library_name": target.library_name, "license": license_name}
    lines = ["---", *(f"{key}: {value}" for key, value in header.items() if value)]
    lines += ["tags:", "- image-feature-extraction", "- masked-image-modeling", "---", ""]
    lines += [f"# {config.name}, step {loaded.step} ({loaded.which} weights)", ""]
    lines += [f"A pretrained image encoder, {report.architecture}, written for {target.says}.", ""]
    lines += [
        "## Load it",
        "",
        "```python",
        report.call,
        "```",
        "",
        *(f"- {note}" for note in report.written.notes),
        "",
    ]
    lines += ["## Proof", "", f"{report.parity}.", ""]
    lines += ["## Data", "", *_data(loaded), "", "## Recipe", "", *_recipe(config), ""]
    lines += ["## Results", "", *_results(loaded, run_dir), "", "## Licence", "", *_licence(config, license_name), ""]
    return "\n".join(lines)


def _data(loaded: Loaded) -> list[str]:
    data = loaded.config.data
    return [
        f"- trained on `{data.train}`, fingerprint of the shards `{loaded.fingerprint or 'unknown'}`",
        f"- pixels are normalised by mean {list(data.mean)} and std {list(data.std)}, of values in 0..1",
    ]


def _recipe(config: Config) -> list[str]:
    flat = flatten(config)
    mask = "none" if config.mask is None else repr(config.mask)
    lines = [f"- seed: {config.seed}", f"- backbone: `{config.backbone!r}`", f"- objective: `{config.objective!r}`"]
    lines += [f"- mask: `{mask}`"]
    if config.init_from is not None:
        lines.append(f"- began with weights from `{config.init_from}` (init_parts={config.init_parts})")
    return lines + [f"- {key}: {flat[key]}" for key in _RECIPE if flat.get(key) is not None]


def _results(loaded: Loaded, run_dir: Path | None) -> list[str]:
    """The run's own evaluation of this step or the last before it, and what `lacuna evaluate` found at this step."""
    found = []
    if run_dir is not None:
        records = [
            r for r in read_lines(run_dir / "evaluations.jsonl") if r.get("step", loaded.step + 1) <= loaded.step
        ]
        if records:
            last = dict(records[-1])
            found.append(f"- during training, at step {last.pop('step')}: {_numbers(last)}")
        path = run_dir / f"evaluate-step-{loaded.step:07d}.json"
        if path.is_file():
            results = json.loads(path.read_text())["results"]
            found += [f"- `lacuna evaluate`, {name}: {_numbers(values)}" for name, values in results.items()]
    return found or ["None were measured; `lacuna evaluate RUN` does."]


def _numbers(values: dict[str, Any]) -> str:
    shown = {key: value for key, value in values.items() if isinstance(value, int | float) and key != "time"}
    return ", ".join(f"{key} {value:.4g}" for key, value in shown.items())


def _licence(config: Config, license_name: str | None) -> list[str]:
    """What is said of the weights, and of those they were made with."""
    lines = [f"These weights: {license_name}." if license_name else "No licence is named for these weights."]
    teacher = getattr(config.objective, "teacher", None)
    if teacher is not None and not teacher.is_ema:
        source = teacher.model + (f" ({teacher.weights})" if teacher.weights else "")
        lines.append(f"They were taught by `{source}`: the licence of the teacher's weights applies to them.")
    tokenizer = getattr(config.backbone, "tokenizer", None)
    if tokenizer is not None:
        lines.append(f"They read the tokens of `{tokenizer!r}`: the licence of its weights applies to these.")
    if config.init_from is not None:
        lines.append(f"They began as `{config.init_from}`: the licence of those weights applies to these.")
    return lines
