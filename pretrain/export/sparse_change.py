"""A sparse run as a small file, and such files laid over the encoder they belong to, as an export like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pretrain.config import Config, read_config, to_json
from pretrain.config_json import from_json
from pretrain.engine.load import Loaded, untrained_backbone
from pretrain.engine.published import encoder_of, read_newest
from pretrain.engine.stored import read_weights
from pretrain.errors import ConfigError
from pretrain.export.export import write_export
from pretrain.export.report import ExportReport
from pretrain.init.fit import fit_encoder
from pretrain.init.foreign import read_encoder
from pretrain.sparse.composable import composed, select
from pretrain.sparse.container import SparseFile, fingerprint, read_sparse
from pretrain.sparse.folded import change_of, sparse_parts


def change_of_run(run_dir: Path, weights: str = "ema", step: int | None = None) -> SparseFile:
    """What a sparse run trained: the change to its encoder, and, of a classifier, the head that was trained beside it.
    weights and step as in `read_newest`. Raises ConfigError for a run that is not sparse."""
    config = read_config(run_dir / "config.json")
    if config.sparse is None:
        raise ConfigError(
            f"{run_dir} trained all of its weights; `lacuna sparse select` finds those that it moved most, and a run "
            "with sparse.method=composable trains them alone"
        )
    found = read_newest(run_dir, weights, step)
    raw = read_weights(found.directory, ema=found.which == "ema")
    sparse = {name.removeprefix("backbone."): parts for name, parts in sparse_parts(raw).items()}
    changes = {name: change_of(parts) for name, parts in sparse.items()}
    base = encoder_of(found.state) | {name: parts["base"] for name, parts in sparse.items()}
    has_head = config.objective.num_classes is not None
    return SparseFile(
        kind=next(iter(changes.values()))[0],
        method=config.sparse.method,
        base=fingerprint(base),
        parts={name: part for name, (_, part) in changes.items()},
        dense={name: tensor for name, tensor in raw.items() if name.startswith("objective.") and has_head},
        about={"config": to_json(config), "step": found.commit.step},
    )


def selection(base: str, tuned: str, keep: float) -> SparseFile:
    """The share keep of the weights of base that were moved most in tuned; both as `init_from` takes them."""
    return select(read_encoder(base).encoder, read_encoder(tuned).encoder, keep)


def changed_encoder(base: str, paths: Sequence[Path]) -> tuple[Loaded, dict[str, Tensor]]:
    """The encoder that base, as `init_from` takes it, is under the files at paths, in the shape of the first one's run;
    and the whole tensors that come with them, such as a head. Raises ConfigError for files of another base."""
    files = [read_sparse(path) for path in paths]
    config, step = _origin(files[0], paths[0])
    backbone = untrained_backbone(config)
    backbone.load_state_dict(fit_encoder(read_encoder(base), backbone).state)
    for file, path in zip(files, paths, strict=True):
        file.require_base(backbone.state_dict(), base, str(path))
    backbone.load_state_dict(composed(backbone.state_dict(), files))
    dense = {name: tensor for file in files for name, tensor in file.dense.items()}
    return Loaded(backbone, config, step, "changed"), dense


def export_changed(base: str, paths: Sequence[Path], to: str, out: Path, *, force: bool = False) -> ExportReport:
    """Writes `changed_encoder` for the target named by to, as `lacuna export` does."""
    return write_export(changed_encoder(base, paths)[0], to, out, force=force)


def _origin(file: SparseFile, path: Path) -> tuple[Config, int]:
    if "config" not in file.about:
        raise ConfigError(f"{path} comes from no run, so nothing says what encoder it is for; give a file of "
                          "`lacuna sparse save`")  # fmt: skip
    config = from_json(file.about["config"], str(path))
    if not isinstance(config, Config):
        raise ConfigError(f"{path} does not hold the config of a run")
    return config, int(file.about["step"])
