"""Published weights: the table, downloads from a server that misbehaves, the command."""

import contextlib
import csv
import hashlib
import http.server
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from l3prune import download, models, published
from l3prune.download import git_blob_sha1
from l3prune.errors import L3PruneError, ParameterError
from l3prune.models import main
from l3prune.published import fetch, find_weights, list_weights, verify

ROOT = Path(models.__file__).parent.parent
CONTENT = np.random.default_rng(3).bytes(300_000)
OTHER = np.random.default_rng(4).bytes(300_000)
SHA1 = hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what the plan of the address's first folder says, one action a request."""

    def do_GET(self):
        folder = self.path.split("/")[1]
        actions = self.server.plan.get(folder, [good])
        action = actions.pop(0) if len(actions) > 1 else actions[0]
        entry = {"folder": folder, "path": self.path, "range": self.headers["Range"], "sent": 0}
        entry["encoding"] = self.headers["Accept-Encoding"]
        self.server.log.append(entry)
        self.entry = entry
        with contextlib.suppress(ConnectionError):  # the client may hang up
            action(self)

    def answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.send_body(body)

    def send_body(self, body):
        self.entry["sent"] += len(body)  # before the client has it and looks
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Its `plan` is {folder: actions}, of which the last stays; `log` has every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.log = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def asked(self, folder):
        return [entry["range"] for entry in self.log if entry["folder"] == folder]


def good(request, cut=None):
    """The content, or the asked-for rest; only `cut` bytes of what was announced, if given."""
    start = int((request.entry["range"] or "bytes=0-")[len("bytes=") : -1])
    rest = CONTENT[start:]
    if not rest:
        request.answer(416)
    elif start:
        where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        request.answer(206, rest[:cut], len(rest), Content_Range=where)
    else:
        request.answer(200, rest[:cut], len(rest))


def cut(size):
    return lambda request: good(request, size)


def without_range(request):
    request.answer(200, CONTENT)


def corrupt(request):
    request.answer(200, OTHER)


def status(code, **headers):
    return lambda request: request.answer(code, b"<html>sorry</html>", **headers)


def redirect(address):
    return lambda request: request.answer(302, Location=address)


def stall(size):
    def action(request):
        good(request, size)
        time.sleep(5)

    return action


def slowly(request):
    request.answer(200, length=len(CONTENT))
    for start in range(0, len(CONTENT), 30_000):
        request.send_body(CONTENT[start : start + 30_000])
        time.sleep(0.05)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The environment's cache folder; nothing else of the machine's environment counts."""
    monkeypatch.delenv("L3PRUNE_WEIGHTS_DIR", raising=False)
    monkeypatch.delenv("L3PRUNE_MIRRORS", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("L3PRUNE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "_PAUSES", (0.01, 0.01, 0.01))
    return tmp_path / "cache"


def toy_table(url):
    return tuple(
        published.PublishedWeights(
            f"toy:{name}", f"{name}.h5.gz", f"{url}/origin/{name}.h5.gz", SHA1, "sea64", "", "MIT"
        )
        for name in ("a", "b", "c")
    )


@pytest.fixture
def table(server, monkeypatch):
    """Three names for the same content, below /origin of the server."""
    monkeypatch.setattr(published, "_table", lambda: toy_table(server.url))


def files_in(folder):
    """Names of all files but locks."""
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix != ".lock")


def whole(path):
    return Path(path).read_bytes() == CONTENT


# The table


@pytest.mark.shared
def test_table_is_the_authors(shared):
    with (shared / "models" / "manifest.csv").open(newline="") as file:
        published = {
            (row["file"], row["url"], row["git_blob_sha1"]) for row in csv.DictReader(file)
        }
    ours = [(weights.file, weights.url, weights.git_blob_sha1) for weights in list_weights()]
    assert len(ours) == len(set(ours)) == len(published) > 50
    assert set(ours) == published


@pytest.mark.shared
def test_hash_of_the_published_network(shared):
    weights = find_weights("edgel3:sea-64")
    assert git_blob_sha1(shared / "models" / weights.file) == weights.git_blob_sha1
    assert fetch(weights.name, offline_dir=shared / "models") == shared / "models" / weights.file


def test_table_is_consistent():
    table = list_weights()
    for key in ("name", "file", "url", "git_blob_sha1"):
        assert len({getattr(weights, key) for weights in table}) == len(table), key
    for weights in table:
        assert find_weights(weights.name) is weights
        assert weights.url.startswith("https://")
        assert weights.url.endswith(f"/{weights.file}")
        assert Path(weights.file).name == weights.file
        assert len(bytes.fromhex(weights.git_blob_sha1)) == 20
        assert weights.licence == ("MIT" if weights.name.startswith("edgel3:") else "CC BY 4.0")


def test_names_say_what_is_in_the_file():
    """Names are put together here once more, from what the file names say."""
    expected = {}
    for kind, sparsity in itertools.product(
        ("ft", "kd"), ("53.5", "63.5", "72.3", "73.5", "81.0", "87.0", "90.5", "95.45")
    ):
        file = f"edgel3_{kind}_audio_sparsity_{sparsity}.h5.gz"
        expected[f"edgel3:sparse-{sparsity}-{kind}"] = file, "mel256", "kapre-0.1"
    for size in ("64", "128", "256", "512"):
        file = f"edgel3_sea_ust_audio_emb_{size}.h5.gz"
        expected[f"edgel3:sea-{size}"] = file, f"sea{size}", "kapre-0.1"
    for part, front, content in itertools.product(
        ("audio", "image"), ("linear", "mel128", "mel256"), ("env", "music")
    ):
        for version, ending in (("", "-v0_4_0"), ("@0.2.0", "-v0_2_0"), ("@unversioned", "")):
            file = f"openl3_{part}_{front}_{content}{ending}.h5.gz"
            if part == "image":
                expected[f"openl3:image-{front}-{content}{version}"] = file, "vision", ""
            else:
                kapre = "kapre-0.1" if version else "kapre-0.3"
                expected[f"openl3:{front}-{content}{version}"] = file, front, kapre
    ours = {each.name: (each.file, each.network, each.front_end) for each in list_weights()}
    assert ours == expected


def test_unknown_names():
    with pytest.raises(ParameterError, match=r"close: .*edgel3:sparse-95.45-ft.*models list"):
        find_weights("edgel3:sparse-95.5-ft")
    for name in ("openl3:mel256-music@0.3.0", "openl3:mel256-music@", "@0.4.0"):
        with pytest.raises(ParameterError, match="no published weights"):
            find_weights(name)
    for name in ("nothing like it", "", None, 3):
        with pytest.raises(ParameterError) as caught:
            find_weights(name)
        assert "close" not in str(caught.value)
    assert find_weights("openl3:mel256-music@0.4.0") is find_weights("openl3:mel256-music")


def test_git_blob_sha1(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"what is up, doc?")  # the example of the Pro Git book
    assert git_blob_sha1(path) == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    path.write_bytes(CONTENT)
    assert git_blob_sha1(str(path)) == SHA1
    with pytest.raises(L3PruneError, match=r"cannot read .*nowhere: No such file"):
        git_blob_sha1(tmp_path / "nowhere")


# Downloads


def test_download_once(server, table, cache, capsys):
    path = fetch("toy:a")
    assert path == cache / "a.h5.gz"
    assert whole(path)
    assert fetch("toy:a") == path
    assert server.asked("origin") == [None]
    assert server.log[0]["encoding"] == "identity"
    assert files_in(cache) == ["a.h5.gz"]
    assert capsys.readouterr().out == ""


def test_resumes_after_a_cut_connection(server, table, cache):
    server.plan["origin"] = [cut(200_000), good]
    assert whole(fetch("toy:a"))
    first, second = server.asked("origin")
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert first is None
    assert 100_000 < start <= 200_000
    assert server.log[1]["sent"] == len(CONTENT) - start


def test_resumes_in_the_next_call(server, table, cache):
    server.plan["origin"] = [cut(200_000), status(404)]
    with pytest.raises(L3PruneError, match="HTTP 404"):
        fetch("toy:a")
    assert files_in(cache) == ["a.h5.gz.part"]
    server.plan["origin"] = [good]
    assert whole(fetch("toy:a"))
    assert server.asked("origin")[2].startswith("bytes=")
    assert server.log[2]["sent"] < 200_000
    assert files_in(cache) == ["a.h5.gz"]


def test_a_finished_part_needs_no_request(server, table, cache):
    cache.mkdir()
    (cache / "a.h5.gz.part").write_bytes(CONTENT)
    assert whole(fetch("toy:a"))
    assert server.log == []


def test_server_without_range(server, table):
    server.plan["origin"] = [cut(200_000), without_range]
    assert whole(fetch("toy:a"))
    assert len(server.log) == 2
    assert server.asked("origin")[1] is not None


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_part_that_is_too_long(server, table, cache, size):
    """The server says 416 to a range that starts at or behind the end."""
    cache.mkdir()
    (cache / "a.h5.gz.part").write_bytes(b"x" * size)
    assert whole(fetch("toy:a"))
    assert server.asked("origin") == [f"bytes={size}-", None]


def test_another_range_than_asked_for(server, table):
    def wrong_range(request):
        where = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
        request.answer(206, CONTENT, Content_Range=where)

    # It is not taken for the rest: a wrong content after it is the first one.
    server.plan["origin"] = [cut(200_000), wrong_range, corrupt, good]
    assert whole(fetch("toy:a"))
    assert server.asked("origin")[2:] == [None, None]


def test_a_part_without_being_asked_for(server, table, cache):
    server.plan["origin"] = [
        lambda request: request.answer(206, CONTENT, Content_Range="bytes 0-299999/300000")
    ]
    with pytest.raises(L3PruneError, match="HTTP 206"):
        fetch("toy:a")
    assert files_in(cache) == []


def test_part_of_another_file(server, table, cache):
    cache.mkdir()
    (cache / "a.h5.gz.part").write_bytes(OTHER[:1000])
    assert whole(fetch("toy:a"))
    assert server.asked("origin") == ["bytes=1000-", None]


def test_corrupt_content_is_never_given_out(server, table, cache):
    server.plan["bad"] = [corrupt]
    assert whole(fetch("toy:a", mirrors=f"{server.url}/bad"))
    assert server.asked("bad") == [None, None]  # once again from scratch, then on
    assert server.asked("origin") == [None]
    server.plan["origin"] = [corrupt]
    with pytest.raises(
        L3PruneError, match=r"bad/b.h5.gz: its content.*origin/b.h5.gz: its content"
    ):
        fetch("toy:b", mirrors=[f"{server.url}/bad/"])
    assert files_in(cache) == ["a.h5.gz"]


def test_truncated_file(server, table, cache):
    """A shorter file, whole as far as HTTP can tell."""
    server.plan["origin"] = [lambda request: request.answer(200, CONTENT[:-1])]
    with pytest.raises(L3PruneError, match="git hash differs"):
        fetch("toy:a")
    assert files_in(cache) == []


def test_connection_that_is_always_cut(server, table, cache):
    server.plan["origin"] = [cut(70_000)]
    server.plan["mute"] = [cut(0)]
    with pytest.raises(L3PruneError, match=r"mute/b.h5.gz: .*0 bytes read"):
        fetch("toy:b", mirrors=f"{server.url}/mute")
    assert len(server.asked("mute")) == 4
    assert "b.h5.gz" not in files_in(cache)


def test_stalled_server(server, table, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUTS", (5.0, 0.3))
    server.plan["origin"] = [stall(200_000), good]
    started = time.monotonic()
    assert whole(fetch("toy:a"))
    assert time.monotonic() - started < 4
    assert server.asked("origin")[1].startswith("bytes=")


def test_server_that_never_answers(server, table, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUTS", (5.0, 0.2))
    server.plan["origin"] = [lambda request: time.sleep(5)]
    with pytest.raises(L3PruneError, match=r"origin/a.h5.gz: nothing came for 0.2 s"):
        fetch("toy:a")
    assert len(server.asked("origin")) == 4


@pytest.mark.parametrize("code", [404, 403, 410, 501, 500, 503, 429])
def test_status(server, table, cache, code):
    server.plan["bad"] = [status(code)]
    assert whole(fetch("toy:a", mirrors=f"{server.url}/bad"))
    assert len(server.asked("bad")) == (1 if code in (403, 404, 410) else 4)
    server.plan["origin"] = [status(code)]
    with pytest.raises(L3PruneError, match=f"origin/b.h5.gz: HTTP {code} [A-Z]"):
        fetch("toy:b")
    assert files_in(cache) == ["a.h5.gz"]


def test_server_that_recovers(server, table):
    server.plan["origin"] = [status(500), status(503), good]
    assert whole(fetch("toy:a"))
    assert len(server.log) == 3


def test_pauses_grow(server, table, monkeypatch):
    waited = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    monkeypatch.setattr(download, "_PAUSES", (1.0, 2.0, 4.0))
    server.plan["origin"] = [status(503)]
    with pytest.raises(L3PruneError, match="HTTP 503"):
        fetch("toy:a")
    assert waited == [1.0, 2.0, 4.0]


def test_file_declared_as_packed_for_the_way(server, table):
    def packed(request):
        request.answer(200, CONTENT, Content_Encoding="gzip")

    server.plan["origin"] = [packed]
    assert whole(fetch("toy:a"))


def test_size_limit(server, table, cache, monkeypatch):
    server.plan["origin"] = [lambda request: request.answer(200, b"x", length=(1 << 30) + 1)]
    with pytest.raises(L3PruneError, match="has 1073741825 bytes"):
        fetch("toy:a")

    def endless(request):
        request.send_response(200)
        request.end_headers()
        for _ in range(100):
            request.send_body(OTHER)

    monkeypatch.setattr(download, "_MAX_BYTES", 500_000)
    server.plan["origin"] = [endless]
    with pytest.raises(L3PruneError, match="sends more than 500000 bytes"):
        fetch("toy:a")
    assert len(server.log) == 2
    assert "a.h5.gz" not in files_in(cache)
    assert sum(path.stat().st_size for path in cache.iterdir()) == 0
    server.plan["origin"] = [good]
    assert whole(fetch("toy:a"))


# Redirects and addresses


def test_redirect(server, table):
    server.plan["origin"] = [redirect(f"{server.url}/store/x")]
    server.plan["store"] = [cut(200_000), good]
    assert whole(fetch("toy:a"))
    assert server.asked("origin")[1].startswith("bytes=")
    assert server.asked("store")[1] == server.asked("origin")[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///etc/hostname", "No connection adapters"),
        ("ftp://127.0.0.1/x", "No connection adapters"),
        ("http://[", "IPv6"),
        ("/bad/a.h5.gz", "Exceeded 30 redirects"),
    ],
)
def test_bad_redirect(server, table, address, reason):
    server.plan["bad"] = [redirect(address)]
    assert whole(fetch("toy:a", mirrors=f"{server.url}/bad"))
    server.plan["origin"] = [status(404)]
    with pytest.raises(L3PruneError, match=reason):
        fetch("toy:b", mirrors=f"{server.url}/bad")


@pytest.fixture
def secure(monkeypatch):
    """Stands for a server behind https://secure.example that redirects to the given address."""

    def to(address):
        class Adapter(requests.adapters.BaseAdapter):
            def send(self, request, **_):
                answer = requests.Response()
                answer.status_code, answer.url, answer.request = 302, request.url, request
                answer.headers["Location"] = address
                answer.raw = io.BytesIO()
                return answer

            def close(self):
                pass

        make = download._Session.__init__

        def init(session):
            make(session)
            session.mount("https://secure.example", Adapter())

        monkeypatch.setattr(download._Session, "__init__", init)

    return to


def test_https_is_not_left(server, table, secure):
    secure(f"{server.url}/elsewhere/a.h5.gz")
    server.plan["origin"] = [status(404)]
    with pytest.raises(
        L3PruneError, match=r"secure.example/a.h5.gz: redirects from https to http:"
    ):
        fetch("toy:a", mirrors="https://secure.example/")
    server.plan["origin"] = [redirect("https://secure.example/")]
    with pytest.raises(L3PruneError, match="redirects from https to http:"):
        fetch("toy:a")
    assert server.asked("elsewhere") == []


def test_mirrors_come_first_and_in_order(server, table, monkeypatch):
    server.plan = {"one": [status(404)], "two": [good]}
    monkeypatch.setenv("L3PRUNE_MIRRORS", f" {server.url}/one  {server.url}/two/ ")
    assert whole(fetch("toy:a"))
    assert [entry["path"] for entry in server.log] == ["/one/a.h5.gz", "/two/a.h5.gz"]
    assert whole(fetch("toy:b", mirrors=[]))  # the argument counts, not the environment
    assert server.log[2]["path"] == "/origin/b.h5.gz"


@pytest.mark.parametrize(
    "mirror",
    [
        "file:///weights",
        "file://host/x",
        "/weights",
        "ftp://host/x",
        "weights",
        "http://",
        "http://[x",
    ],
)
def test_other_mirrors_are_refused(server, table, monkeypatch, mirror):
    with pytest.raises(ParameterError, match=r"no http:// or https:// .*L3PRUNE_WEIGHTS_DIR"):
        fetch("toy:a", mirrors=[mirror])
    monkeypatch.setenv("L3PRUNE_MIRRORS", f"{server.url}/one {mirror}")
    with pytest.raises(ParameterError, match=r"no http:// or https://"):
        fetch("toy:a")
    assert server.log == []


def test_no_network(server, table, cache, monkeypatch):
    def resolve(host, *rest, asked=socket.getaddrinfo):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return asked(host, *rest)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with Server() as closed:
        url = closed.url.replace("//", "//me:secret@")
    server.plan["origin"] = [status(404)]
    with pytest.raises(L3PruneError) as caught:
        fetch("toy:a", mirrors=[url, "http://nowhere.invalid/x"])
    text = str(caught.value)
    assert text.startswith("cannot download a.h5.gz (toy:a): ")
    assert f"{closed.url}/a.h5.gz: Connection refused; " in text
    assert "; http://nowhere.invalid/x/a.h5.gz: Name or service not known; " in text
    assert f"; {server.url}/origin/a.h5.gz: HTTP 404 Not Found; " in text
    assert "set L3PRUNE_WEIGHTS_DIR to that, or set L3PRUNE_MIRRORS" in text
    assert "secret" not in text
    assert "\n" not in text


# Folders


def test_damaged_cache_is_downloaded_again(server, table, cache, capsys):
    cache.mkdir()
    (cache / "a.h5.gz").write_bytes(OTHER)
    assert whole(fetch("toy:a"))
    assert capsys.readouterr() == (
        "",
        f"{cache / 'a.h5.gz'} is damaged; downloading it again\n",
    )
    (cache / "a.h5.gz").write_bytes(OTHER)
    assert whole(fetch("toy:a", quiet=True))
    assert capsys.readouterr() == ("", "")
    (cache / "a.h5.gz").write_bytes(OTHER)
    server.plan["origin"] = [status(404)]
    with pytest.raises(L3PruneError, match="404"):
        fetch("toy:a")
    assert files_in(cache) == []


def test_offline_folder(server, table, cache, tmp_path, monkeypatch):
    folder = tmp_path / "carried"
    folder.mkdir()
    (folder / "a.h5.gz").write_bytes(CONTENT)
    assert fetch("toy:a", offline_dir=folder) == folder / "a.h5.gz"
    several = [str(tmp_path / "not-mounted-here"), str(tmp_path), "~/carried"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("L3PRUNE_WEIGHTS_DIR", os.pathsep.join(several))
    assert fetch("toy:a") == folder / "a.h5.gz"
    assert server.log == []
    assert not cache.exists()
    assert fetch("toy:b") == cache / "b.h5.gz"
    assert files_in(folder) == ["a.h5.gz"]


def test_damaged_offline_file(server, table, cache, tmp_path, monkeypatch):
    assert fetch("toy:a")
    (tmp_path / "a.h5.gz").write_bytes(OTHER)
    with pytest.raises(L3PruneError, match=f"{tmp_path}/a.h5.gz is damaged.*{SHA1}"):
        fetch("toy:a", offline_dir=tmp_path)
    monkeypatch.setenv("L3PRUNE_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(L3PruneError, match=f"{tmp_path}/a.h5.gz is damaged"):
        fetch("toy:a")
    assert (tmp_path / "a.h5.gz").read_bytes() == OTHER
    with pytest.raises(ParameterError, match=r"offline folder .*nowhere is no folder"):
        fetch("toy:a", offline_dir=tmp_path / "nowhere")


def test_cache_folder(table, cache, tmp_path, monkeypatch):
    assert fetch("toy:a", cache_dir=tmp_path / "mine") == tmp_path / "mine" / "a.h5.gz"
    assert not cache.exists()
    monkeypatch.delenv("L3PRUNE_CACHE_DIR")
    monkeypatch.setattr(
        published.platformdirs, "user_cache_dir", lambda *_, **__: f"{tmp_path}/user"
    )
    assert fetch("toy:a") == tmp_path / "user" / "a.h5.gz"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("L3PRUNE_CACHE_DIR", "~/home")
    assert fetch("toy:a") == tmp_path / "home" / "a.h5.gz"


def test_cache_that_cannot_be_written(server, table, cache, monkeypatch):
    (cache.parent / "file").touch()
    with pytest.raises(L3PruneError, match=r"cannot make the folder .*by L3PRUNE_CACHE_DIR"):
        fetch("toy:a", cache_dir=cache.parent / "file" / "cache")
    path = fetch("toy:a")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert fetch("toy:a") == path
    with pytest.raises(L3PruneError, match=r"cannot write to the folder .*by L3PRUNE_CACHE_DIR"):
        fetch("toy:b")
    assert server.asked("origin") == [None]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk(table, cache):
    cache.mkdir()
    (cache / "a.h5.gz.part").symlink_to("/dev/full")
    with pytest.raises(L3PruneError, match=r"cannot write .*a.h5.gz: No space left on device"):
        fetch("toy:a")


def test_file_that_cannot_be_renamed(table, cache, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(L3PruneError, match=r"cannot write .*b.h5.gz: Permission denied"):
        fetch("toy:b")
    assert files_in(cache) == ["b.h5.gz.part"]


# Several at once, and killed


def test_threads_download_once(server, table):
    server.plan["origin"] = [slowly]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, ["toy:a"] * 4))
    assert all(whole(path) for path in paths)
    assert server.asked("origin") == [None]


def process(url, folder):
    """Another process that fetches toy:a."""
    code = (
        "from l3prune import published\n"
        "from tests.test_models import toy_table\n"
        f"published._table = lambda: toy_table({url!r})\n"
        f"print(published.fetch('toy:a', cache_dir={str(folder)!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_processes_download_once(server, cache):
    server.plan["origin"] = [slowly]
    both = [process(server.url, cache) for _ in range(2)]
    for each in both:
        out, err = each.communicate(timeout=20)
        assert (out, err) == (f"{cache / 'a.h5.gz'}\n", "")
    assert whole(cache / "a.h5.gz")
    assert server.asked("origin") == [None]


def test_killed_in_the_middle(server, table, cache):
    server.plan["origin"] = [stall(200_000), good]
    killed = process(server.url, cache)
    part = cache / "a.h5.gz.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert files_in(cache) == ["a.h5.gz.part"]
    assert whole(fetch("toy:a"))
    assert server.asked("origin")[1].startswith("bytes=")


# The command


def run(capsys, *words):
    """Exit code, lines of standard output, lines of standard error."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


def test_list(table, cache, capsys):
    fetch("toy:b")
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, [])
    assert [line.split() for line in out] == [
        ["name", "network", "size", "cached"],
        ["toy:a", "sea64", "-", "no"],
        ["toy:b", "sea64", "0.3", "MB", "yes"],
        ["toy:c", "sea64", "-", "no"],
    ]
    code, out, err = run(capsys, "list", "--json", "toy:[bc]", "toy:b")
    rows = json.loads("\n".join(out))
    assert [row["name"] for row in rows] == ["toy:b", "toy:c"]
    assert [row["bytes"] for row in rows] == [300_000, None]
    assert [row["path"] for row in rows] == [str(cache / "b.h5.gz"), None]
    assert [row["git_blob_sha1"] for row in rows] == [SHA1] * 2
    assert rows[0]["network"] == "sea64"
    assert run(capsys, "list", "--cache-dir", cache / "other")[1][2].split()[-1] == "no"


def test_list_of_everything_is_aligned(capsys):
    code, out, _ = run(capsys, "list")
    assert (code, len(out)) == (0, 1 + len(list_weights()))
    assert len({len(line.removesuffix("cached").removesuffix("no")) for line in out}) == 1


def test_fetch(server, table, cache, capsys):
    server.plan["mirror"] = [good]
    code, out, err = run(capsys, "fetch", "toy:*", "toy:a", "--mirror", f"{server.url}/mirror")
    assert (code, err) == (0, [])
    assert out == [str(cache / f"{name}.h5.gz") for name in "abc"]
    assert server.asked("mirror") == [None] * 3
    assert server.asked("origin") == []
    other = cache.parent / "other"
    words = ("fetch", "toy:a", "--from", cache, "--cache-dir", other, "--quiet")
    assert run(capsys, *words) == (0, [str(cache / "a.h5.gz")], [])
    assert not other.exists()
    words = ("fetch", "toy:a", "--cache-dir", other, "-q")
    assert run(capsys, *words) == (0, [str(other / "a.h5.gz")], [])


def test_fetch_what_can_be_fetched(server, table, cache, capsys):
    server.plan["origin"] = [good, status(404), good]
    code, out, err = run(capsys, "fetch", "toy:*")
    assert (code, out) == (1, [str(cache / f"{name}.h5.gz") for name in "ac"])
    assert len(err) == 1
    assert err[0].startswith("failed: cannot download b.h5.gz (toy:b): ")


def test_fetch_nothing(server, table, capsys):
    server.plan["origin"] = [status(404)]
    code, out, err = run(capsys, "fetch", "toy:a", "toy:b")
    assert (code, out, len(err)) == (2, [], 3)
    assert err[-1] == "error: no file was fetched"


def test_verify(table, cache, capsys):
    for name in ("toy:a", "toy:b"):
        fetch(name)
    assert run(capsys, "verify") == (0, ["ok       toy:a", "ok       toy:b"], [])
    assert run(capsys, "verify", "--quiet") == (0, [], [])
    (cache / "b.h5.gz").write_bytes(OTHER)
    assert verify() == {"toy:a": "ok", "toy:b": "damaged"}
    assert verify(["toy:c", "toy:a"]) == {"toy:c": "missing", "toy:a": "ok"}
    repair = "to repair: python -m l3prune.models fetch"
    lines = ["ok       toy:a", "damaged  toy:b"]
    assert run(capsys, "verify") == (1, lines, [f"{repair} toy:b"])
    assert run(capsys, "verify", "-q") == (1, lines[1:], [f"{repair} toy:b"])
    assert run(capsys, "verify", "toy:c") == (1, ["missing  toy:c"], [f"{repair} toy:c"])
    paths = [str(cache / "b.h5.gz"), str(cache / "c.h5.gz")]
    assert run(capsys, "fetch", "toy:[bc]", "-q") == (0, paths, [])
    assert run(capsys, "verify", "toy:*")[0] == 0
    assert run(capsys, "verify", "--cache-dir", cache.parent / "other", "toy:a")[0] == 1


def test_one_line_and_exit_code_2(server, table, cache, tmp_path, capsys):
    server.plan["origin"] = [status(404)]
    (tmp_path / "a.h5.gz").write_bytes(OTHER)
    (tmp_path / "file").touch()
    for words, message in [
        (("fetch", "toy:aa"), "error: no published weights 'toy:aa'; close: toy:a"),
        (("fetch", "toy:a", "x:*"), "error: no published weights match 'x:*'; `python -m"),
        (("list", "toy:x*"), "error: no published weights match 'toy:x*'"),
        (("list", "toy:d"), "error: no published weights 'toy:d'"),
        (("verify", "toy:d"), "error: no published weights 'toy:d'"),
        (("verify",), f"error: no published weights in {cache}; get them with"),
        (("fetch", "toy:a"), "error: cannot download a.h5.gz (toy:a): http://127"),
        (("fetch", "toy:*", "--mirror", "file:///x"), "error: mirror file:///x is no http"),
        (("fetch", "toy:*", "--from", "/nowhere"), "error: offline folder /nowhere is no folder"),
        (("fetch", "toy:a", "--from", tmp_path), f"error: {tmp_path}/a.h5.gz is damaged"),
        (("fetch", "toy:a", "--cache-dir", tmp_path / "file"), "error: cannot make the folder"),
    ]:
        code, out, err = run(capsys, *words)
        assert (code, out, len(err)) == (2, [], 1), words
        assert err[0].startswith(message), words
    assert not cache.exists() or files_in(cache) == []


@pytest.mark.parametrize("words", [[], ["get"], ["fetch"], ["list", "--mirror", "x"]])
def test_wrong_usage(capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m l3prune.models")


def test_as_a_user_types_it():
    ended = subprocess.run(
        [sys.executable, "-m", "l3prune.models", "list", "edgel3:sea-*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:]] == [
        f"edgel3:sea-{size}" for size in (64, 128, 256, 512)
    ]
