"""Where an export's files go. They are made in a draft folder beside their places and renamed when all of them are
proved; where anything fails none is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pretrain.engine import fsops
from pretrain.errors import ConfigError

_WEIGHTS = (".safetensors", ".pth", ".pt", ".pt2", ".bin", ".ckpt", ".tar", ".onnx")


@dataclass(frozen=True)
class Place:
    """A folder, and the names of what goes into it."""

    folder: Path
    main: str  # the weights
    card: str

    @property
    def weights(self) -> Path:
        """Where the weights will be."""
        return self.folder / self.main


def place_for(out: Path, to: str, main: str, beside: tuple[str, ...], *, only_folder: bool, force: bool) -> Place:
    """The place that out means for a target whose weights are called main in a folder, and whose other files are
    beside. Raises ConfigError for another kind of file, and for what is there already unless force."""
    suffix = Path(main).suffix
    if out.suffix == suffix and not only_folder:
        place = Place(out.parent, out.name, f"{out.stem}.md")
    elif out.suffix in _WEIGHTS:
        wanted = "a folder" if only_folder else f"{out.stem}{suffix}, or a folder"
        raise ConfigError(
            f"--out {out}: --to {to} writes {suffix}{', which cannot run code' * (suffix == '.safetensors')}; name "
            f"{wanted}"
        )
    else:
        place = Place(out, main, "README.md")
    for name in (place.main, *beside, place.card):
        if (place.folder / name).exists() and not force:
            raise ConfigError(
                f"{place.folder / name} exists; give another --out, best a new folder, or replace it with --force"
            )
    return place


@contextmanager
def drafted(place: Place) -> Iterator[Path]:
    """A folder to make the files in. Left without an error, it is published: every file is flushed and renamed, the
    weights last. An error leaves neither files nor folders behind."""
    made = [folder for folder in (place.folder, *place.folder.parents) if not folder.exists()]
    draft = place.folder / f".draft-{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        yield draft
        _publish(draft, place)
        made = []
    finally:
        fsops.remove_tree(draft)
        for folder in made:
            folder.rmdir()


def _publish(draft: Path, place: Place) -> None:
    files = sorted(draft.iterdir(), key=lambda path: path.name == place.main)
    mode = (draft / place.card).stat().st_mode  # safetensors lets nobody else read its files, whatever the umask says
    for path in files:
        path.chmod(mode)
        fsops.flush(path)
        os.replace(path, place.folder / path.name)
    fsops.fsync_dir(place.folder)
