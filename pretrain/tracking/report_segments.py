"""The report's part on a segmentation: how mIoU went, each class's share, and the newest picture."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain import strict_json
from pretrain.tracking.charts import Series, chart, short
from pretrain.tracking.report_curves import legend
from pretrain.tracking.run_data import RunData
from pretrain.tracking.segments_picture import GROUP

_CURVES = (("miou", "mIoU", "first"), ("pixel_accuracy", "pixel accuracy", "second"))
_COLUMNS = 4  # of classes side by side


def segmentation(run: RunData) -> str:
    """Curves where it was measured during training, the newest figures, the newest picture; nothing for other runs."""
    newest = _newest(run)
    if newest is None:
        return ""
    curves = [Series(name, run.evaluated(key), style, dots=True) for key, name, style in _CURVES]
    drawn = ""
    if len(curves[0].points) > 1:
        picture = chart("mIoU", curves, percent=True, marks=run.resumes)
        drawn = f'<div class="charts"><div class="card"><h3>By step {legend(curves)}</h3>{picture}</div></div>'
    return drawn + _figures(newest) + _picture(run)


def _newest(run: RunData) -> dict[str, Any] | None:
    """What the newest step that was measured gave, by the command or during training."""
    found = []
    for path in sorted(run.run_dir.glob(f"{GROUP}-step-*.json")):
        try:
            facts = strict_json.loads(path.read_text())
            found.append({"step": int(facts["step"]), **facts["result"]})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    found += [record for record in run.evaluations if "miou" in record]  # of some images only, so behind the others
    known = [record for record in found if isinstance(record.get("class_iou"), dict)]
    return max(known, key=lambda record: record["step"], default=None)


def _figures(record: dict[str, Any]) -> str:
    cells = [
        f'<th>{escape(str(name))}</th><td class="n">{100 * share:.1f}</td>'
        for name, share in record["class_iou"].items()
        if isinstance(share, int | float)
    ]
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    lead = (
        f"Step {short(record['step'])}: mIoU <b>{100 * record['miou']:.1f} %</b>, pixel accuracy "
        f"{100 * record['pixel_accuracy']:.1f} %, {record['val_images']} images. IoU of each class in percent:"
    )
    words = record["warnings"] if isinstance(record.get("warnings"), list) else []
    warnings = "".join(f'<p class="warn">{escape(str(text))}</p>' for text in words)
    return f'{warnings}<p class="note">{lead}</p><div class="card wide"><table class="plain">{body}</table></div>'


def _picture(run: RunData) -> str:
    paths: list[Path] = sorted((run.run_dir / "panels").glob(f"{GROUP}-*.png"))
    try:
        with Image.open(paths[-1]) as picture:
            picture.verify()
        shown = base64.b64encode(paths[-1].read_bytes()).decode()
    except (OSError, ValueError, IndexError, SyntaxError):
        return ""
    words = "images, their true classes, and those predicted"
    image = f'<img src="data:image/png;base64,{shown}" alt="{words}" style="max-width:100%">'
    return f'<p></p><div class="card wide">{image}</div>'
