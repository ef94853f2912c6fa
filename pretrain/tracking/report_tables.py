"""The report's tables: history of attempts, bad samples, config, environment."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from html import escape
from typing import Any

from pretrain.config import to_json
from pretrain.config_json import component
from pretrain.errors import ConfigError
from pretrain.tracking.lines import Record
from pretrain.tracking.run_data import RunData

_MAX_ROWS = 12


def history(run: RunData) -> str:
    """Attempts and what happened in them, oldest first; or a sentence."""
    events = [event for event in run.journal if event.get("event") != "panel"]
    kinds = [event.get("event") for event in events]
    events = [e for e, now, after in zip(events, kinds, [*kinds[1:], ""]) if not now == after == "checkpoint"]
    if not events:
        return '<p class="note">The journal is empty.</p>'
    rows, going = [], False
    for event in events:
        if event.get("event") == "started":
            if going:
                rows.append(("", "ended without a word", "killed, or its machine was lost"))
            going = True
        going = going and event.get("event") != "stopped"
        rows.append((_when(event), str(event.get("event", "?")), _details(event)))
    if going and run.total_steps is not None and run.last_step >= run.total_steps:
        rows.append(("", "finished", f"step {run.last_step:,}"))
    body = "".join(f"<tr><th>{a}</th><td>{escape(b)}</td><td>{escape(c)}</td></tr>" for a, b, c in rows[-60:])
    return f'<div class="card wide"><table class="plain">{body}</table></div>'


def bad_samples(run: RunData) -> str:
    """How many samples were bad and why, and the first of them; nothing where all were good."""
    if not run.ledger:
        return ""
    reasons = Counter(str(entry.get("reason", "?")) for entry in run.ledger).most_common(_MAX_ROWS)
    counts = "".join(f'<tr><td>{escape(reason)}</td><td class="n">{count:,}</td></tr>' for reason, count in reasons)
    names = ("position", "shard", "key", "reason")
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(entry.get(name, '')))}</td>" for name in names) + "</tr>"
        for entry in run.ledger[:_MAX_ROWS]
    )
    more = len(run.ledger) - _MAX_ROWS
    rest = f'<p class="note">{more:,} more are in ledger.jsonl.</p>' if more > 0 else ""
    heads = "".join(f"<th>{name}</th>" for name in names)
    return (
        f'<div class="card wide"><table class="plain">{counts}</table></div><br><div class="card wide">'
        f'<table class="plain"><thead><tr>{heads}</tr></thead>{rows}</table></div>{rest}'
    )


def config_tables(run: RunData) -> str:
    """Every setting, a card a group; those that differ from their default stand out."""
    top = {name: value for name, value in run.config.items() if not isinstance(value, dict) and name != "type"}
    parts = {name: value for name, value in run.config.items() if isinstance(value, dict)}
    groups, defaults = {"run": top, **parts}, _defaults(parts)
    return f'<div class="columns">{"".join(_group(name, value, defaults) for name, value in groups.items())}</div>'


def environment_tables(run: RunData) -> str:
    """Command, packages and machine; or a sentence."""
    environment = dict(run.environment)
    if not environment:
        return '<p class="note">environment.json is missing.</p>'
    command = environment.pop("command", None)
    packages = environment.pop("packages", None)
    words = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
    groups = {"machine": environment}
    if isinstance(packages, dict):
        groups["packages"] = packages
    cards = "".join(_group(name, value, {}) for name, value in groups.items())
    return (f"<pre>{escape(words)}</pre>" if words else "") + f'<div class="columns">{cards}</div>'


def _group(name: str, values: Record, defaults: dict[str, Any]) -> str:
    kind = str(values.get("type", "")).partition(":")[2]
    rows = []
    for key, value in _flat(values):
        full = key if name == "run" else f"{name}.{key}"
        changed = full in defaults and value != defaults[full]
        mark = ' class="changed"' if changed else ""
        rows.append(f"<tr><th>{escape(key)}</th><td{mark}>{escape(_words(value))}</td></tr>")
    head = f"<h3>{escape(name)} <small>{escape(kind)}</small></h3>"
    return f'<div class="card">{head}<table class="plain">{"".join(rows)}</table></div>'


def _flat(values: Record, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif key != "type":
            found.append((f"{prefix}{key}", value))
    return found


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_words(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _defaults(groups: dict[str, Record]) -> dict[str, Any]:
    """Default of every setting that has one, as JSON has it, by its key; of types this version has not, none."""
    found: dict[str, Any] = {}
    for name, group in groups.items():
        try:
            items = dataclasses.fields(component(group.get("type"), name))
        except ConfigError:
            continue
        for item in items:
            if item.default is not dataclasses.MISSING:
                found |= dict(_flat({item.name: to_json(item.default)}, f"{name}."))
    return found


def _when(event: Record) -> str:
    moment = event.get("time")
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if isinstance(moment, int | float) else ""


def _details(event: Record) -> str:
    words = {"step": "step {}", "world_size": "{} processes", "attempt": "attempt {}", "exit_code": "exit code {}"}
    parts = []
    for key, value in event.items():
        if key not in ("time", "event") and value is not None:
            text = words.get(key, "{}" if key in ("reason", "text") else key + " {}").format(value)
            parts.append("1 process" if text == "1 processes" else text)
    return ", ".join(parts)
