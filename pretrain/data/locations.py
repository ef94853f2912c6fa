"""Where shards may be: a closed table of schemes, decided here before any library sees the string.

A location is a path, `file:` or `https:`; patterns may hold globs (local only), brace ranges and commas. What could run
a program or read the environment (`pipe:`, `::`, `${...}`) is refused, as is every scheme that is not in the table."""

from __future__ import annotations

import fnmatch
import glob
import re
from pathlib import Path
from urllib.parse import urlsplit

from braceexpand import braceexpand

from pretrain.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_LATER = {"s3": "an https: URL of the bucket", "gs": "an https: URL of the bucket", "http": "https:"}
_WHAT = "shards are given as a path, a glob, a brace range, or an https: URL; several are joined by commas"


def expand(pattern: str, *, allow_http: bool = False) -> list[str]:
    """The shards a pattern names, in order: local paths (globs sorted) and https: URLs. ConfigError says what is wrong.

    allow_http: plain http as well, for tests against a server on this machine."""
    _refuse_programs(pattern)
    shards: list[str] = []
    for part in _split(pattern):
        try:
            texts = list(braceexpand(part))
        except ValueError as error:
            raise ConfigError(f"shards {pattern!r}: {error}; close every brace") from error
        for text in texts:
            shards += _places(text, pattern, allow_http)
    if not shards:
        raise ConfigError(f"shards {pattern!r} name nothing; {_WHAT}")
    twice = next((shard for index, shard in enumerate(shards) if shard in set(shards[:index])), None)
    if len(set(shards)) < len(shards):
        raise ConfigError(f"shards {pattern!r} name {twice} twice; name every shard once")
    return shards


def is_remote(shard: str) -> bool:
    """Whether a shard from `expand` is a URL."""
    return shard.startswith(("https://", "http://"))


def matches(pattern: str, path: str) -> bool:
    """Whether a local path is one that a glob (or folder) of the pattern would find."""
    for part in _split(pattern):
        for text in braceexpand(part):
            if fnmatch.fnmatch(path, f"{text.rstrip('/')}/*.tar" if Path(text).is_dir() else text):
                return True
    return False


def _places(text: str, pattern: str, allow_http: bool) -> list[str]:
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _local(text, pattern)
    name = scheme[1].lower()
    if name == "file":
        rest = text[len("file:") :]
        return _local(rest[2:] if rest.startswith("//") else rest, pattern)
    if name == "https" or (name == "http" and allow_http):
        parts = urlsplit(text)
        if parts.username or parts.password:
            raise ConfigError(
                f"a URL on {parts.hostname} holds a user name or password, which logs would show; remove it"
            )
        if not parts.hostname or any(sign in parts.path for sign in "*[?"):
            raise ConfigError(
                f"shards {text!r}: a URL needs a host and no glob; use a brace range such as {{000..127}}"
            )
        return [f"{name}:{text[len(name) + 1 :]}"]
    if name in _LATER:
        raise ConfigError(
            f"shards {text!r}: {name}: is not supported; use {_LATER[name]}, or copy the shards to a disk"
        )
    raise ConfigError(
        f"shards {text!r}: the scheme {name}: is not allowed; {_WHAT} (a file name with a colon: ./{text})"
    )


def _local(text: str, pattern: str) -> list[str]:
    if not text:
        raise ConfigError(f"shards {pattern!r} hold an empty name; {_WHAT}")
    if Path(text).is_dir():
        text = f"{glob.escape(text.rstrip('/'))}/*.tar"
    elif not glob.has_magic(text) or Path(text).is_file():
        return [text]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise ConfigError(f"no file matches {text!r} (from {Path.cwd()}); {_WHAT}")
    return found


def _refuse_programs(pattern: str) -> None:
    for sign, why in (("::", "chained locations can run programs"), ("${", "the environment is never read for it")):
        if sign in pattern:
            raise ConfigError(f"shards {pattern!r} hold {sign!r}: {why}; {_WHAT}")
    if re.search(r"(?i)(^|[,{])\s*(pipe:|\|)", pattern):
        raise ConfigError(f"shards {pattern!r}: pipe: would run a program and is never allowed; {_WHAT}")


def _split(pattern: str) -> list[str]:
    """The parts between commas that are outside braces."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(pattern):
        depth += (sign == "{") - (sign == "}")
        if sign == "," and depth == 0:
            parts.append(pattern[start:at])
            start = at + 1
    return [part.strip() for part in parts + [pattern[start:]]]
