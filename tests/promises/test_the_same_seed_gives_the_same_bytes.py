"""Promise 10: the same seed on the same machine gives the same bytes, wherever they are written."""

from __future__ import annotations

import pytest
from tests.faults import files

NAMES = ("prepare", "prepare atoms", "train surface", "train motion", "forecast", "forecast atoms")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_words_write_the_same_bytes_into_another_folder(
    workplace, children, undisturbed, tmp_path, name
):
    out = tmp_path / "another"
    assert children.run(workplace.commands[name](out)).code == 0
    assert files(out) == undisturbed(name).files


@pytest.mark.parametrize(
    ("name", "flag", "changed"),
    [
        ("prepare", "--seed=1", "run/pool-0000.npy"),
        ("train surface", "--fit.seed=1", "weights.safetensors"),
        ("forecast atoms", "--seed=1", "state/samples.npy"),
    ],
)
def test_another_seed_gives_others(workplace, children, undisturbed, tmp_path, name, flag, changed):
    out = tmp_path / "another"
    ended = children.run([*workplace.commands[name](out), flag])
    assert ended.code == 0, ended.err
    assert files(out)[changed] != undisturbed(name).files[changed]
