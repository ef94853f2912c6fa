"""Remote shards against a real server on this machine: fetched whole, checked, kept within bounds."""

import http.server
import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from pretrain.data import retry as retrying
from pretrain.data.fetch import Cache
from pretrain.data.indexing import index_shards
from pretrain.data.shards import open_shards
from pretrain.errors import ConfigError, DataError
from tests.data.shard_files import jpeg, samples, write


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `faults` is a list of what goes wrong with the next requests of .tar files."""

    def do_GET(self):
        self.server.asked.append(self.path)
        fault = self.server.faults.pop(0) if self.path.endswith(".tar") and self.server.faults else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif isinstance(fault, str):
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(retrying, "BACKOFF_S", 0.0)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    for number in range(3):
        write(folder / f"s-{number}.tar", samples(4, first=4 * number))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(folder))) as made:
        made.folder, made.asked, made.faults = folder, [], []
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", timeout_s=5.0, allow_http=True)


def read_all(shards):
    return [shards.read(s, n)["jpg"] for s, length in enumerate(shards.lengths) for n in range(length)]


def test_with_a_manifest_opening_fetches_no_shard_and_reading_only_what_is_read(server, cache):
    want = index_shards(str(server.folder)).fingerprint
    shards = open_shards(f"{server.url}/s-{{0..2}}.tar", cache=cache)
    assert shards.fingerprint == want
    assert server.asked == ["/manifest.json"]
    assert shards.read(1, 2)["jpg"] == jpeg(6)
    assert server.asked[1:] == ["/s-1.tar.idx", "/s-1.tar"]
    assert read_all(shards) == [jpeg(number) for number in range(12)]
    asked = len(server.asked)
    assert read_all(open_shards(f"{server.url}/s-{{0..2}}.tar", cache=cache)) == read_all(shards)
    assert server.asked[asked:] == ["/manifest.json"]


def test_without_a_manifest_shards_are_fetched_and_indexed_here(server, cache):
    shards = open_shards(f"{server.url}/s-{{0..2}}.tar", cache=cache)
    assert read_all(shards) == [jpeg(number) for number in range(12)]
    with pytest.raises(DataError, match="no manifest beside it"):
        open_shards(f"{server.url}/s-0.tar", cache=Cache(cache.folder / "new", allow_http=True), index_missing=False)
    assert shards.fingerprint == index_shards(str(server.folder)).fingerprint


def test_faults_of_the_server_are_tried_again(server, cache):
    index_shards(str(server.folder))
    shards = open_shards(f"{server.url}/s-0.tar", cache=cache)
    server.faults[:] = [503, "short", 500, 404]
    assert read_all(shards) == [jpeg(number) for number in range(4)]
    assert [path.name for path in cache.folder.iterdir() if ".part" in path.name] == []


def test_a_server_that_stays_down_ends_the_attempt_with_the_url(server, cache):
    index_shards(str(server.folder))
    shards = open_shards(f"{server.url}/s-0.tar", cache=cache)
    server.faults[:] = [503] * 5
    with pytest.raises(DataError, match=r"s-0\.tar cannot be read .*503.*tried 5 times"):
        shards.read(0, 0)


def test_a_file_larger_than_its_cache_is_not_fetched_to_the_end(server, cache):
    small = Cache(cache.folder, max_bytes=1000, timeout_s=5.0, allow_http=True)
    with pytest.raises(DataError, match=r"s-0\.tar has more than 1000 bytes, as data.cache_gb allows"):
        small.fetch(f"{server.url}/s-0.tar")
    assert not cache.folder.exists() or list(cache.folder.iterdir()) == []
    assert server.asked == ["/s-0.tar"], "a size is no fault that trying again would mend"


def test_what_arrives_must_be_what_the_manifest_names(server, cache):
    index_shards(str(server.folder))
    shards = open_shards(f"{server.url}/s-0.tar", cache=cache)
    write(server.folder / "s-0.tar", samples(4, first=90))
    with pytest.raises(DataError, match="not what the manifest names"):
        shards.read(0, 0)
    assert not list(cache.folder.glob("*.tar"))


def test_the_cache_stays_within_its_size_and_keeps_what_was_used_last(server, tmp_path):
    index_shards(str(server.folder))
    size = (server.folder / "s-0.tar").stat().st_size
    cache = Cache(tmp_path / "small", max_bytes=2 * size + 5000, allow_http=True)
    cache.folder.mkdir()
    for name, age_s in {"left.tar.part-1": 7200, "fresh.tar.part-2": 0}.items():
        (cache.folder / name).write_bytes(bytes(10))
        os.utime(cache.folder / name, (time.time() - age_s,) * 2)
    shards = open_shards(f"{server.url}/s-{{0..2}}.tar", cache=cache)
    assert read_all(shards) == [jpeg(number) for number in range(12)]
    assert [path.name for path in cache.folder.glob("*.part-*")] == ["fresh.tar.part-2"]
    assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= cache.max_bytes
    assert cache.place(f"{server.url}/s-2.tar").exists()
    assert not cache.place(f"{server.url}/s-0.tar").exists()
    assert shards.read(0, 0)["jpg"] == jpeg(0)  # still open here
    again = open_shards(f"{server.url}/s-{{0..2}}.tar", cache=cache)
    assert again.read(0, 0)["jpg"] == jpeg(0)  # fetched once more


def test_shards_of_one_name_on_two_servers_do_not_meet(cache):
    assert cache.place("https://a/x.tar") != cache.place("https://b/x.tar")
    assert cache.place("https://a/../../../x.tar").parent == cache.folder


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/s-0.tar", "file:///etc/passwd", "ftp://127.0.0.1/x.tar"])
def test_nothing_but_https_is_fetched_or_followed(server, tmp_path, target):
    strict = Cache(tmp_path / "strict")
    with pytest.raises((DataError, ConfigError)):
        strict.fetch(target)
    from pretrain.data.fetch import _NoDowngrade

    request = urllib.request.Request("https://host/s-0.tar")
    with pytest.raises(DataError, match="not https"):
        _NoDowngrade(False).redirect_request(request, None, 302, "Found", {}, target)


def test_a_url_without_a_cache_or_over_plain_http_is_refused(server):
    with pytest.raises(ConfigError, match=r"data\.cache_dir"):
        open_shards("https://host/s-0.tar")
    with pytest.raises(ConfigError, match="https"):
        open_shards(f"{server.url}/s-0.tar", cache=Cache(Path("unused")))
