"""What ``make reproduce`` asks for: every row until its plateau, in folders that can be taken."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
pytestmark = pytest.mark.skipif(
    not (TOOLS / "reproduce.py").is_file(), reason="tools lie in the repository alone"
)


@pytest.fixture
def asked(monkeypatch):
    """Return the tool and the commands it gives, none of which is run."""
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = spec_from_file_location("reproduce_tool", TOOLS / "reproduce.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    commands: list[list[str]] = []
    monkeypatch.setattr(module, "run", commands.append)
    monkeypatch.setattr(module, "recorded", lambda system, data, work: work / system)
    return module, commands


def test_every_system_of_atoms_has_its_own_tables(asked, tmp_path):
    tool, commands = asked
    tool.atoms(tmp_path, tmp_path, ["--jobs", "2"])
    outs = [words[words.index("-o") + 1] for words in commands]
    assert outs == [str(tmp_path / "atoms" / system) for system in tool.PATTERNS]
    assert all("--until-plateau" in words for words in commands)
    assert all(words[-2:] == ["--jobs", "2"] for words in commands)


def test_surfaces_are_trained_until_their_plateau(asked, tmp_path):
    tool, commands = asked
    tool.surfaces(tmp_path, ["--seeds", "0"])
    *prepared, study = commands
    assert {words[0] for words in prepared} == {"prepare"}
    assert study[:3] == ["evaluate", "--protocol", "moe-dsr"]
    assert study[-3:] == ["--until-plateau", "--seeds", "0"]
    names = {Path(words[words.index("-o") + 1]).name for words in prepared}
    given = study[study.index("--data") + 1 : study.index("--runs")]
    assert {Path(folder).name for folder in given} == names
