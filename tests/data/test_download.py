"""Downloads against a server on this machine: whole, resumed, damaged, refused; no network."""

import contextlib
import hashlib
import http.server
import re
import socket
import threading

import pytest

from jaxneg.data import download
from jaxneg.errors import InputError

CONTENT = bytes(range(256)) * 12_000  # 3 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the server's `mode` says, and notes the Range of each request."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        mode = self.server.mode
        if mode == "missing":
            self.send_error(404)
            return
        if asked and mode == "ranges" and start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        ranged = asked and mode in ("ranges", "break", "other part")
        body = CONTENT[start:] if ranged else CONTENT
        self.send_response(206 if ranged else 200)
        if ranged:
            first = start + (mode == "other part")
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mode == "break" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.mode, server.asked = "ranges", []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def source_of(server, md5=MD5, **fields) -> download.Source:
    url = f"http://127.0.0.1:{server.server_port}/file.zip"
    return download.Source(url, "file.zip", "https://example.org/page", "ml1m", md5, **fields)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole(server, tmp_path, capsys):
    path = download.download(source_of(server), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file.zip"]
    assert server.asked == [None]
    assert "file.zip" in capsys.readouterr().err  # the progress bar
    download.download(source_of(server), path.parent)  # there already: nothing is asked for
    assert server.asked == [None]


@pytest.mark.parametrize("have", [1, 1000, len(CONTENT) - 1, len(CONTENT)])
def test_resumed(server, tmp_path, have):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:have])
    path = download.download(source_of(server), tmp_path)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["file.zip"]
    assert server.asked == [f"bytes={have}-"]


def test_resumed_from_a_server_that_cannot(server, tmp_path):
    server.mode = "no ranges"
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    assert download.download(source_of(server), tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.mode = "break"
    with pytest.raises(InputError, match=r"broke after .* of 3,072,000 bytes\); .* bytes are kept, the same com"):
        download.download(source_of(server), tmp_path)
    kept = (tmp_path / "file.zip.part").stat().st_size
    assert names(tmp_path) == ["file.zip.part"] and kept == len(CONTENT) // 2
    server.mode = "ranges"
    assert download.download(source_of(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={kept}-"]


def test_checksum_mismatch_leaves_no_file(server, tmp_path):
    with pytest.raises(InputError, match=f"md5 is {MD5}, the published one is 0123"):
        download.download(source_of(server, md5="0123"), tmp_path)
    assert names(tmp_path) == []


def test_stale_part_is_found_by_the_checksum(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="the published one is"):
        download.download(source_of(server), tmp_path)
    assert download.download(source_of(server), tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"x")
    with pytest.raises(InputError, match="does not fit and is removed; run again"):
        download.download(source_of(server), tmp_path)
    assert download.download(source_of(server), tmp_path).read_bytes() == CONTENT


def test_another_part_than_asked_for(server, tmp_path):
    server.mode = "other part"
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    with pytest.raises(InputError, match="sent another part than asked for"):
        download.download(source_of(server), tmp_path)


def test_number_of_lines(server, tmp_path):
    lines = CONTENT.count(b"\n")
    with pytest.raises(InputError, match=f"it has {lines:,} lines, the published file has 7"):
        download.download(source_of(server, md5="", num_lines=7), tmp_path)
    assert names(tmp_path) == []
    assert download.download(source_of(server, md5="", num_lines=lines), tmp_path).exists()


def test_a_wrong_file_that_is_there_is_told(server, tmp_path):
    (tmp_path / "file.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match="remove .*file.zip to fetch it again"):
        download.download(source_of(server), tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == b"mine" and server.asked == []


BY_HAND = "get file.zip from https://example.org/page, put it at .*file.zip, and run: python -m jaxneg.main --config"


def test_server_refuses(server, tmp_path):
    server.mode = "missing"
    with pytest.raises(InputError, match=f"the server says 404 .*{BY_HAND}"):
        download.download(source_of(server), tmp_path)


def test_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.closing(socket.socket()) as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        source = download.Source(url, "file.zip", "https://example.org/page", "ml1m")
        with pytest.raises(InputError, match=f"cannot fetch http.*{BY_HAND}") as caught:
            download.download(source, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out .*file cannot be written"):
        download.download(source_of(server), tmp_path / "file")


def test_command(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.SOURCES, "beauty", source_of(server, md5=""))
    assert download.main(["beauty", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert f"no checksum is published for file.zip; its sha256 is {hashlib.sha256(CONTENT).hexdigest()}" in told.err
    assert "next: python -m jaxneg.main --config=configs/ml1m.py" in told.out
    assert download.main(["retailrocket", "--out", str(tmp_path)]) == 2
    assert "jaxneg: events.csv needs a login: get events.csv from https://www.kaggle.com" in capsys.readouterr().err


@pytest.mark.parametrize("name", download.SOURCES)
def test_sources_are_complete(name):
    source = download.SOURCES[name]
    assert source.page.startswith("https://") and source.url.startswith(("https://", ""))
    assert re.fullmatch("[0-9a-f]{32}", source.md5) if "grouplens" in source.url else not source.md5
