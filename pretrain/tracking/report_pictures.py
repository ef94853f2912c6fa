"""The report's pictures: reconstructions of the same images as training goes on, samples, masks of the run's strategy,
and the rank of attention maps."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from masking.gallery import Exhibit, exhibit
from masking.mask import Grid
from pretrain import strict_json
from pretrain.config import read_config
from pretrain.errors import ConfigError
from pretrain.tracking.alignment_picture import alignment_film
from pretrain.tracking.attention_picture import NAME
from pretrain.tracking.charts import short
from pretrain.tracking.frames import frames
from pretrain.tracking.heterogeneity_picture import heterogeneity_sheet
from pretrain.tracking.panels import Cells, read_cells
from pretrain.tracking.run_data import RunData

_MAX_STEPS = 6  # columns of reconstructions
_MAX_IMAGES = 5
_CELL_PX = 224
_TOKEN_FIGURES = (
    ("variance between tokens of an image", "token_variance", ".1%"),
    ("their similarity", "token_similarity", ".3f"),
    ("effective rank", "effective_rank", ".1f"),
)


def predicts(run: RunData) -> bool:
    """Whether the run's pictures show what it makes of images; True where there is no picture yet."""
    cells = read_cells(run.panels[-1][1]) if run.panels else None
    return cells is None or _made(cells) is not None


def reconstructions(run: RunData) -> str:
    """A table: a row an image: masked, where it was, reconstructed at some steps where the objective does that,
    original; or a sentence."""
    sheets = [(step, cells) for step, path in frames(run.panels, _MAX_STEPS) if (cells := read_cells(path)) is not None]
    if not sheets and run.config.get("mask") is None:
        return ""
    if not sheets:
        why = (
            "tracking.panels_every is none" if _setting(run, "tracking", "panels_every") is None else "none is due yet"
        )
        return f'<p class="note">There are no pictures of reconstructions: {why}.</p>'
    first = sheets[0][1]
    if not all(_same_images(first, cells) for _, cells in sheets):  # the panels' data was changed between attempts
        sheets = sheets[-1:]
        first = sheets[0][1]
    made = _made(first)
    if made is None:
        sheets = []
    masked = ["masked"] if "masked" in first.rows[0] else []
    heads = [f"<th>{name}</th>" for name in masked] + [f"<th>step <b>{short(step)}</b></th>" for step, _ in sheets]
    heads += ['<th class="gap"></th>', "<th>original</th>"]
    rows = []
    for index in range(min(len(first.rows), _MAX_IMAGES)):
        row = [_cell(first.rows[index][name], name) for name in masked]
        row += [_cell(cells.rows[index][made], f"step {step}") for step, cells in sheets if made is not None]
        rows.append("".join([*row, '<td class="gap"></td>', _cell(first.rows[index]["original"], "original")]))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    columns = f'style="--columns:{len(heads) - 1}"'  # few of them are not blown up to the width of the page
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="strip"><table {columns}>{head}<tbody>{body}</tbody></table></div>'


def samples(run: RunData) -> str:
    """A strip of generated images for some steps, one below the other; nothing where none was made."""
    rows = []
    for step, path in frames(run.samples, _MAX_STEPS):
        try:
            with Image.open(path) as picture:
                shown = _png(picture.convert("RGBA"))
        except (OSError, ValueError):
            continue
        words = f"images generated at step {step}"
        rows.append(f'<tr><th>step <b>{short(step)}</b></th><td><img src="{shown}" alt="{words}"></td></tr>')
    return f'<div class="strip"><table style="--columns:4">{"".join(rows)}</table></div>' if rows else ""


def attention(run: RunData) -> str:
    """The picture that `lacuna evaluate --attention` has written, and what it found of the last tokens; nothing where
    there is none, or none that can be read."""
    path = run.run_dir / f"{NAME}.png"
    try:
        with Image.open(path) as picture:
            picture.verify()
        shown = base64.b64encode(path.read_bytes()).decode()
        results = strict_json.loads(path.with_suffix(".json").read_text())["results"]
        rows = [_tokens_row(name, result) for name, result in results.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    image = f'<img src="data:image/png;base64,{shown}" alt="rank of attention maps by block" style="max-width:100%">'
    heads = "".join(f"<th>{words}</th>" for words, _, _ in _TOKEN_FIGURES)
    table = f'<table class="plain"><thead><tr><th>last tokens</th>{heads}</tr></thead>{"".join(rows)}</table>'
    return f'<div class="card wide">{image}{table}</div>'


def alignment(run: RunData) -> str:
    """The film of the learned alignment, and the distances at the levels that are compared; nothing where the run
    learns none."""
    film = alignment_film(run.inspections)
    if film is None:
        return ""
    last = next(record for record in reversed(run.inspections) if record.get("distances"))
    heads = "".join(f"<th>{level + 1}</th>" for level in last["levels"])
    cells = "".join(f"<td>{value:.3f}</td>" for value in last["distances"])
    words = f"distance at step {short(last['step'])}"
    table = (
        f'<table class="plain"><thead><tr><th>level of the teacher</th>{heads}</tr></thead>'
        f"<tr><th>{words}</th>{cells}</tr></table>"
    )
    image = f'<img src="{_png(film)}" alt="matrix of the alignment at several steps" style="max-width:100%">'
    return f'<div class="card wide">{image}{table}</div>'


def heterogeneity(run: RunData) -> str:
    """What hidden tokens are like in every block; nothing where no inspection has looked at them."""
    sheet = heterogeneity_sheet(run.inspections)
    if sheet is None:
        return ""
    words = "figures of hidden tokens by block at several steps"
    return f'<div class="card wide"><img src="{_png(sheet)}" alt="{words}" style="max-width:100%"></div>'


def masks(run: RunData) -> str:
    """Masks of the run's strategy, where they fall, and their numbers; or a sentence; nothing for a run without."""
    try:
        config = read_config(run.run_dir / "config.json")
        if config.mask is None:
            return ""
        height, width = config.data.image_size
        patch = config.backbone.patch_size
        grid = Grid(height // patch, width // patch)
        shown = exhibit(type(config.mask).__name__, config.mask, grid, 4, seed=config.seed)
    except (ConfigError, ImportError, ValueError, ArithmeticError) as error:
        return f'<p class="note">The masks cannot be drawn by this version: {escape(str(error))}.</p>'
    figures = [f"<figure>{_mask_svg(hidden.tolist())}</figure>" for hidden in shown.hidden]
    figures.append(
        f"<figure>{_frequency_svg(shown.frequency.tolist())}<figcaption>how often visible</figcaption></figure>"
    )
    note = '<p class="note">They depend on the image: these are masks of imagined objects.</p>' if shown.guided else ""
    return f'<div class="card"><div class="masks">{"".join(figures)}{_numbers(shown)}</div></div>{note}'


def _made(cells: Cells) -> str | None:
    """The column that shows what the model made, if any."""
    return next((name for name in ("paste", "reconstruction") if name in cells.rows[0]), None)


def _tokens_row(name: str, result: dict[str, float]) -> str:
    cells = "".join(f"<td>{result[key]:{form}}</td>" for _, key, form in _TOKEN_FIGURES)
    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def _numbers(shown: Exhibit) -> str:
    numbers = shown.coverage
    rows = [
        ("strategy", shown.name),
        ("visible", f"{100 * numbers.share_visible:.1f} %"),
        ("visible of a visible patch's 4 neighbours", f"{numbers.visible_neighbours:.2f}"),
        ("visible with no visible neighbour", f"{100 * numbers.share_isolated:.0f} %"),
        ("groups of visible patches", f"{numbers.components:.1f}"),
        ("patches from a hidden one to the nearest visible", f"{numbers.distance:.2f}"),
        ("the same, farthest in an image", f"{numbers.farthest:.1f}"),
        ("of the mask's power, in waves of 4 patches and longer", f"{100 * sum(numbers.bands[:2]):.0f} %"),
    ]
    cells = "".join(f'<tr><th>{escape(name)}</th><td class="n">{escape(value)}</td></tr>' for name, value in rows)
    return f'<table class="plain">{cells}</table>'


def _mask_svg(hidden: list[list[bool]]) -> str:
    """Visible patches filled, hidden ones left empty."""
    squares = [
        f"M{x + 0.05:.2f} {y + 0.05:.2f}h.9v.9h-.9z" for y, row in enumerate(hidden) for x, h in enumerate(row) if not h
    ]
    return _svg(hidden, f'<path d="{"".join(squares)}"/>')


def _frequency_svg(frequency: list[list[float]]) -> str:
    squares = [
        f'<rect x="{x + 0.05:.2f}" y="{y + 0.05:.2f}" width=".9" height=".9" opacity="{1 - value:.2f}"/>'
        for y, row in enumerate(frequency)
        for x, value in enumerate(row)
    ]
    return _svg(frequency, "".join(squares))


def _svg(cells: list[list[bool]] | list[list[float]], body: str) -> str:
    return f'<svg viewBox="-.3 -.3 {len(cells[0]) + 0.6} {len(cells) + 0.6}" aria-hidden="true">{body}</svg>'


def _same_images(first: Cells, other: Cells) -> bool:
    name = "masked" if "masked" in first.rows[0] else "original"
    return len(first.rows) == len(other.rows) and all(
        name in b and a[name].tobytes() == b[name].tobytes() for a, b in zip(first.rows, other.rows, strict=True)
    )


def _cell(picture: Image.Image, words: str) -> str:
    small = picture
    if max(picture.size) > _CELL_PX:
        small = picture.copy()
        small.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
    return f'<td><img src="{_data_url(small)}" alt="{words}" width="{small.width}" height="{small.height}"></td>'


def _data_url(picture: Image.Image) -> str:
    """The picture inside the page: a lossless PNG where that is small, as for enlarged pixels, else a good JPEG."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, format="PNG")
    picture.save(jpeg, format="JPEG", quality=88)
    kind, data = ("png", png) if png.tell() <= 1.5 * jpeg.tell() else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _png(picture: Image.Image) -> str:
    """The picture inside the page, with its transparent ground."""
    png = io.BytesIO()
    picture.save(png, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def _setting(run: RunData, group: str, name: str) -> object:
    return run.config.get(group, {}).get(name)
