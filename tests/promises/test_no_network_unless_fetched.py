"""Promise 9: no network unless the user types a fetch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from io import BytesIO

import pytest
from tests.loopback import serving
from tests.promises.verbs import ALLOWED, watched


@pytest.fixture
def server():
    with serving() as loopback:
        yield loopback


def test_no_verb_asks_for_a_network(every_verb):
    assert every_verb.ended.network == []


def test_importing_everything_asks_for_none(tmp_path):
    code = (
        "import sys; sys.addaudithook(lambda event, arguments: event.startswith('socket.') and "
        "event != 'socket.__new__' and sys.exit(event));"
        "import undula; [getattr(undula, name) for name in undula.__all__]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_watch_sees_a_fetch_and_stops_it(tmp_path, server):
    """What forbids the network in these tests does forbid it."""
    words = ["data", "fetch", "ala2", "-o", tmp_path / "out", "--base", server.url]
    ended = watched([words], tmp_path / "work")
    assert ended.codes != [0]
    assert ended.network
    assert server.asked == []


def test_a_fetch_goes_to_the_configured_server_alone(tmp_path, server):
    held = BytesIO()
    with zipfile.ZipFile(held, "w") as opened:
        opened.writestr("1vii_A.pdb", "ATOM")
    server.files["/1vii_A"] = held.getvalue()
    words = ["data", "fetch", "atlas", "1vii_A", "-o", tmp_path / "out"]
    address = f"{server.url}/{{name}}"
    ended = watched([words], tmp_path / "work", UNDULA_ATLAS_URL=address, **{ALLOWED: "1"})
    assert [path for path, _ in server.asked] == ["/1vii_A"]
    host, port = server.url.removeprefix("http://").split(":")
    assert ended.network
    for one in ended.network:
        assert host in one, one
        assert port in one, one
