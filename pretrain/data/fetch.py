"""Remote shards: fetched whole into a bounded local cache, checked on arrival, published by one rename.

Plain https from Python's own library: no child process, no redirect away from https, a limit on size. Files are named
by the hash of their URL, so two servers' `train-000000.tar` never meet. An open file survives its removal."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.retry import retry
from pretrain.errors import DataError

_CHUNK = 1 << 20
_STALE_S = 3600.0  # a part that nobody has written to for so long was left by a kill
_MAX_SIDE_FILE = 1 << 30  # bytes of an index or a manifest


@dataclass(frozen=True)
class Cache:
    """A folder of fetched files, at most max_bytes of them; the longest unused go first."""

    folder: Path
    max_bytes: int = 100_000_000_000
    timeout_s: float = 60.0  # without a byte from the server
    ca_file: str | None = None  # certificates to trust instead of the system's
    allow_http: bool = False  # for tests against a server on this machine

    def place(self, url: str) -> Path:
        """Where the file of a URL is kept, fetched or not."""
        return self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:20]}-{Path(url.partition('?')[0]).name[-80:]}"

    def fetch(self, url: str, sha256: str | None = None) -> Path:
        """The local copy of a URL, fetched when it is not there. sha256: what it must be, checked on arrival."""
        place = self.place(url)
        try:
            os.utime(place)
            return place
        except FileNotFoundError:
            pass
        self.folder.mkdir(parents=True, exist_ok=True)
        retry(lambda: self._download(url, place, sha256), url)
        self._evict(place)
        return place

    def read(self, url: str) -> bytes | None:
        """Content of a small file, not kept; None where the server has none (404, 403)."""

        def get() -> bytes | None:
            try:
                with self._open(url) as reply:
                    return bytes(reply.read(_MAX_SIDE_FILE))
            except urllib.error.HTTPError as error:
                if error.code in (403, 404, 410):
                    return None
                raise

        return retry(get, url)

    def _download(self, url: str, place: Path, sha256: str | None) -> None:
        part = place.with_name(f"{place.name}.part-{os.getpid()}")
        digest, size = hashlib.sha256(), 0
        try:
            with self._open(url) as reply, part.open("wb") as file:
                expected = reply.headers.get("Content-Length")
                while chunk := reply.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    if size > self.max_bytes:
                        raise DataError(f"{url} has more than {self.max_bytes} bytes, as data.cache_gb allows")
                    file.write(chunk)
            if expected is not None and int(expected) != size:
                raise ConnectionError(f"{size} of {expected} bytes arrived")
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ConnectionError(f"what arrived is not what the manifest names: sha256 {digest.hexdigest()[:12]}")
            part.replace(place)
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            part.unlink(missing_ok=True)

    def _open(self, url: str) -> Any:
        if not url.startswith("https://") and not (self.allow_http and url.startswith("http://")):
            raise DataError(f"{url} is not fetched: only https is allowed")
        handlers: list[Any] = [_NoDowngrade(self.allow_http)]
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.ca_file)))
        opener = urllib.request.OpenerDirector()
        handlers += [urllib.request.ProxyHandler(), urllib.request.HTTPErrorProcessor()]
        handlers += [urllib.request.HTTPDefaultErrorHandler()]
        if self.allow_http:
            handlers.append(urllib.request.HTTPHandler())
        for handler in handlers:  # these and no others: no file:, no ftp:, no data:
            opener.add_handler(handler)
        return opener.open(url, timeout=self.timeout_s)

    def _evict(self, keep: Path) -> None:
        files = []
        for path in self.folder.iterdir():
            try:
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:
                continue  # another process was faster
        total = sum(size for _, size, _ in files)
        for modified_ns, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            if ".part-" in path.name and modified_ns / 1e9 > time.time() - _STALE_S:
                continue  # on its way
            if path != keep and path.suffix != ".idx":
                path.unlink(missing_ok=True)
                total -= size


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    def __init__(self, allow_http: bool) -> None:
        self._allow_http = allow_http

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        if not newurl.lower().startswith("https://") and not self._allow_http:
            raise DataError(
                f"{req.full_url} redirects to {newurl.split('?')[0]}, which is not https; it is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)
