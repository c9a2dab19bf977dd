"""Real files that are damaged, odd or useless, each with the answer it should get."""

import json
from pathlib import Path

import pytest

from undula.atomic import sha256
from undula.errors import UndulaError
from undula.io.inspection import inspect

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "bad-inputs"
MANIFEST = FOLDER / "manifest.json"
ROWS = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else []
pytestmark = pytest.mark.skipif(not ROWS, reason=f"the shared files {FOLDER} are not here")


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_gives_the_answer_of_the_manifest(row):
    words = row["command"].split()
    options = dict(zip(words[2::2], words[3::2], strict=False))
    purpose, name = words[3], words[4]
    topology = FOLDER / words[6] if "--topology" in words else None
    assert "--for" in options
    code, message, notices = 0, "", ()
    try:
        notices = inspect(FOLDER / name, purpose=purpose, topology=topology).notices
    except UndulaError as error:
        code, message = error.exit_code, str(error)
    assert code in row["exit_codes"], message
    if row["verdict"] == "WARN":
        assert notices
    if code == 3:
        assert message.startswith(f"{FOLDER / name}: ")
        assert "\n" not in message
    assert sha256(FOLDER / name) == row["sha256"]
