import fcntl
import hashlib
import json
import random
from http.client import HTTPMessage
from types import SimpleNamespace
from urllib.request import Request

import pytest
from tests.loopback import serving

from undula.errors import InputError, MachineError, UsageError
from undula.io.downloads import DownloadConfig, NotOnServerError, SafeRedirects, download

BODY = b"PK" + random.Random(0).randbytes(99_998)
HASH = hashlib.sha256(BODY).hexdigest()
QUICK = DownloadConfig(pause_s=0.0, attempts=3, timeout_s=2.0)


@pytest.fixture
def server():
    with serving() as loopback:
        loopback.files["/file"] = BODY
        yield loopback


def bring(server, folder, **more):
    more = {"config": QUICK, "begins": b"PK", **more}
    return download(f"{server.url}/file", folder / "file.zip", **more)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_with_its_hash_and_leaves_nothing_beside_it(server, tmp_path):
    came = bring(server, tmp_path, sha256=HASH.upper())
    assert came.path.read_bytes() == BODY
    assert (came.sha256, came.size) == (HASH, 100_000)
    assert names(tmp_path) == ["file.zip"]


def test_a_cut_connection_goes_on_where_it_was_cut(server, tmp_path):
    server.cuts = [30_000, 20_000]
    assert bring(server, tmp_path).sha256 == HASH
    assert [span for _, span in server.asked] == [None, "bytes=30000-", "bytes=50000-"]
    assert server.sent == len(BODY)


def test_a_later_call_goes_on_where_the_attempts_ended(server, tmp_path):
    server.cuts = [10_000, 10_000, 10_000]
    with pytest.raises(MachineError, match=r"after 3 attempts; 30000 bytes are kept"):
        bring(server, tmp_path)
    assert names(tmp_path) == ["file.zip.part", "file.zip.part.json"]
    assert bring(server, tmp_path).sha256 == HASH
    assert server.sent == len(BODY)


def test_a_part_that_is_already_whole_is_only_named(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(BODY)
    record = {"url": f"{server.url}/file", "validator": '"one"', "total": len(BODY)}
    (tmp_path / "file.zip.part.json").write_text(json.dumps(record))
    assert bring(server, tmp_path).sha256 == HASH
    assert server.sent == 0


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.ranges, server.cuts = False, [30_000]
    assert bring(server, tmp_path).sha256 == HASH
    assert server.sent == len(BODY) + 30_000


def test_a_file_that_changed_on_the_server_is_brought_anew(server, tmp_path):
    server.cuts = [10_000] * 3
    with pytest.raises(MachineError):
        bring(server, tmp_path)
    server.files["/file"], server.tag = BODY[:2] + BODY[:1:-1], '"two"'
    assert bring(server, tmp_path).path.read_bytes() == server.files["/file"]


def test_without_a_tag_another_size_tells_that_the_file_changed(server, tmp_path):
    server.tag, server.cuts = None, [10_000] * 3
    with pytest.raises(MachineError):
        bring(server, tmp_path)
    server.files["/file"] = BODY + b"more"
    assert bring(server, tmp_path).path.read_bytes() == BODY + b"more"


def test_a_part_of_another_address_is_not_continued(server, tmp_path):
    server.files["/other"] = b"PK other"
    server.cuts = [10_000] * 3
    with pytest.raises(MachineError):
        bring(server, tmp_path)
    came = download(f"{server.url}/other", tmp_path / "file.zip", config=QUICK)
    assert came.path.read_bytes() == b"PK other"


def test_a_wrong_hash_is_named_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(InputError, match=f"{HASH}, not {'0' * 64} as promised"):
        bring(server, tmp_path, sha256="0" * 64)
    assert names(tmp_path) == []


def test_a_file_that_is_there_is_checked_and_not_brought_again(server, tmp_path):
    (tmp_path / "file.zip").write_bytes(BODY)
    assert bring(server, tmp_path, sha256=HASH).sha256 == HASH
    assert server.asked == []
    with pytest.raises(InputError, match=r"file\.zip has the SHA-256"):
        bring(server, tmp_path, sha256="0" * 64)
    assert (tmp_path / "file.zip").read_bytes() == BODY


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"\n <!DOCTYPE HTML><p>Log in", "application/zip"), (b"<p>Log in", "text/html")],
)
def test_a_login_page_is_refused_at_once(server, tmp_path, body, kind):
    server.files["/file"], server.kind = body, kind
    with pytest.raises(MachineError, match="perhaps the login page of this network"):
        bring(server, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_file_of_another_kind_is_refused(server, tmp_path):
    server.files["/file"] = b'{"detail": "busy"}'
    with pytest.raises(InputError, match="not the kind of file"):
        bring(server, tmp_path)
    assert names(tmp_path) == []


def test_what_the_server_does_not_have_is_told_from_a_server_that_refuses(server, tmp_path):
    with pytest.raises(NotOnServerError, match="nowhere"):
        download(f"{server.url}/nowhere", tmp_path / "x", config=QUICK)
    server.statuses = [403]
    with pytest.raises(MachineError, match="status 403"):
        bring(server, tmp_path)
    assert len(server.asked) == 2
    assert names(tmp_path) == []


def test_a_busy_server_is_asked_again_and_then_given_up(server, tmp_path):
    server.statuses = [503, 429]
    assert bring(server, tmp_path).sha256 == HASH
    server.statuses = [500] * 3
    with pytest.raises(MachineError, match="status 500; gave up after 3 attempts"):
        download(f"{server.url}/file", tmp_path / "again", config=QUICK)


def test_a_dead_server_is_a_machine_error(tmp_path):
    with serving() as gone:
        url = gone.url
    with pytest.raises(MachineError, match="no answer"):
        download(f"{url}/file", tmp_path / "x", config=QUICK)
    assert names(tmp_path) == []


def test_a_file_beyond_the_limit_or_the_disk_is_refused(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="more than 50000"):
        bring(server, tmp_path, config=DownloadConfig(largest=50_000))
    full = SimpleNamespace(free=7)
    monkeypatch.setattr("undula.io.downloads.shutil.disk_usage", lambda _: full)
    with pytest.raises(MachineError, match="room for 7"):
        bring(server, tmp_path)
    assert names(tmp_path) == []


def test_redirections_are_followed_on_the_web_only(server, tmp_path):
    with serving() as other:
        other.files = {"/file": BODY}
        server.statuses, server.headers = [302], {"Location": f"{other.url}/file"}
        assert bring(server, tmp_path).sha256 == HASH
        server.statuses, server.headers = [302], {"Location": "file:///etc/hostname"}
        with pytest.raises(MachineError, match="not allowed"):
            download(f"{server.url}/file", tmp_path / "x", config=QUICK)
    asked = Request("https://a/file")
    with pytest.raises(MachineError, match="leads to http://a/file, which is not safe"):
        SafeRedirects().redirect_request(asked, None, 302, "", HTTPMessage(), "http://a/file")


def test_two_processes_do_not_write_one_file(server, tmp_path):
    with (tmp_path / "file.zip.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MachineError, match="another process"):
            bring(server, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "nonsense", "https://"])
def test_only_web_addresses_are_taken(tmp_path, url):
    with pytest.raises(UsageError, match="no web address"):
        download(url, tmp_path / "x")


def test_a_hash_that_cannot_be_one_is_named(tmp_path):
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        download("http://127.0.0.1/x", tmp_path / "x", sha256="abc")


@pytest.mark.parametrize("key", ["timeout_s", "attempts", "largest", "pause_s"])
def test_impossible_patience_is_named(key):
    with pytest.raises(UsageError, match=key):
        DownloadConfig(**{key: -1 if key in ("attempts", "largest") else -1.0})
