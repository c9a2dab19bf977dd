import importlib.util

import pytest

from undula.data.simulation.settings import SimulateConfig, preset
from undula.data.simulation.simulate import simulate
from undula.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("system", "name", "particles", "frames"),
    [
        ("argon", "clean", 250, 10_000),
        ("argon", "paper", 258, 10_000),
        ("argon", "tiny", 64, 500),
        ("tip3p", "clean", 258, 10_000),
        ("tip3p", "paper", 258, 10_000),
        ("tip4p", "clean", 258, 10_000),
        ("tip4p", "paper", 251, 10_000),
        ("tip4p", "tiny", 27, 500),
    ],
)
def test_presets_have_the_sizes_of_the_table(system, name, particles, frames):
    config = preset(system, name)
    assert (config.particles, config.frames) == (particles, frames)
    assert config.every_ps == 0.1


def test_only_the_paper_preset_repeats_the_published_start():
    assert preset("argon", "paper").as_published
    assert preset("argon", "paper").step_fs == 2.0
    assert preset("argon", "paper").equilibration_ps == 0.0
    assert not preset("argon").as_published
    assert preset("argon").equilibration_ps >= 20.0


def test_alanine_dipeptide_of_the_paper_is_a_download():
    with pytest.raises(UsageError, match="undula data fetch ala2"):
        preset("ala2", "paper")


def test_what_cannot_be_meant_is_refused_by_name():
    with pytest.raises(UsageError, match="no preset papre"):
        preset("argon", "papre")
    with pytest.raises(InputError, match=r"argn is no structure file, and none of argon"):
        preset("argn")
    with pytest.raises(UsageError, match="--solvent is for proteins"):
        preset("argon", solvent="explicit")
    for key, value in (("frames", 0), ("step_fs", 0.0), ("platform", "GPU"), ("seed", -1)):
        with pytest.raises(UsageError, match=f"^{key} should"):
            SimulateConfig(**{"system": "ala2", key: value})
    with pytest.raises(UsageError, match="particles should be at least 2"):
        SimulateConfig(system="argon")


def test_frames_lie_on_whole_steps():
    assert preset("argon").steps_per_frame == 10
    assert preset("ala2").steps_per_frame == 125
    with pytest.raises(UsageError, match="every_ps should be two or more whole steps of 3 fs"):
        SimulateConfig(system="ala2", step_fs=3.0, every_ps=0.1)


def test_a_missing_extra_is_named_with_its_install_command(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "undula\[simulate\]"'):
        simulate(preset("argon", "tiny"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
