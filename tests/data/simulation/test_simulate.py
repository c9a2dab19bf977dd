import json
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("openmm", reason="OpenMM is not installed: the extra simulate")
pytest.importorskip("pdbfixer", reason="PDBFixer is not installed: the extra simulate")

import mdtraj

from undula.data.bundled import villin
from undula.data.simulation.settings import preset
from undula.data.simulation.simulate import simulate
from undula.errors import UsageError
from undula.io.recordings import central_differences, open_recordings

KELVIN = 0.831446261815324
"""Boltzmann's constant, u Å²/ps²/K."""


def tiny(system, **changes):
    return replace(preset(system, "tiny"), **({"trajectories": 1, "platform": "CPU"} | changes))


def quick(**changes):
    few = {"particles": 27, "frames": 6, "checkpoint_frames": 2, "equilibration_ps": 1.0}
    return tiny("argon", **(few | {"platform": "Reference"} | changes))


def arrays(recordings, number=0):
    recording = recordings.recordings[number]
    return (
        torch.from_numpy(np.array(a)).double() for a in (recording.positions, recording.velocities)
    )


def momentum(recordings):
    """Return the speed of the centre of mass in each frame, Å/ps."""
    _, velocities = arrays(recordings)
    masses = recordings.system.masses
    return (masses[:, None] * velocities).sum(dim=1).div(masses.sum()).norm(dim=1)


def temperature(recordings, constraints):
    _, velocities = arrays(recordings)
    masses = recordings.system.masses
    free = 3 * len(masses) - constraints - 3
    return float((masses[:, None] * velocities.square()).sum(dim=(1, 2)).mean() / free / KELVIN)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def argon(tmp_path_factory):
    return simulate(tiny("argon"), tmp_path_factory.mktemp("made") / "argon")


@pytest.fixture(scope="module", params=["tip3p", "tip4p"])
def water(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / request.param
    return simulate(tiny(request.param, frames=100), out)


@pytest.fixture(scope="module")
def alanine(tmp_path_factory):
    return simulate(tiny("ala2", frames=200), tmp_path_factory.mktemp("made") / "ala2")


def test_argon_keeps_its_temperature_and_its_centre_of_mass(argon):
    assert len(argon.recordings[0]) == 500
    assert argon.frame_ps == 0.1
    assert temperature(argon, 0) == pytest.approx(100, rel=0.03)
    assert momentum(argon).max() < 1e-6
    positions, _ = arrays(argon)
    assert (positions.mean(dim=1) - positions[0].mean(dim=0)).abs().max() < 1e-5


def test_unwrapped_positions_jump_less_than_half_a_box(argon, water):
    for recordings in (argon, water):
        positions, _ = arrays(recordings)
        edge = float(recordings.recordings[0].box(0)[0, 0])
        assert positions.diff(dim=0).abs().max() < edge / 2


def test_argon_has_the_published_density_and_no_charges(argon):
    edge = float(argon.recordings[0].box(0)[0, 0])
    assert 64 / edge**3 * 3.4**3 == pytest.approx(0.5)
    assert set(argon.system.kinds) == {"AR"}
    assert argon.system.molecule_count == 64
    assert (argon.system.charges == 0).all()


def test_argon_velocities_are_those_of_the_positions_at_the_same_time(tmp_path):
    made = simulate(tiny("argon", every_ps=0.02, frames=100), tmp_path / "argon")
    positions, velocities = arrays(made)
    error = central_differences(positions, 0.02) - velocities[2:-2]
    assert error.square().mean().sqrt() < 0.01 * velocities.std()


def test_water_is_rigid_and_its_virtual_site_is_left_out(water):
    positions, _ = arrays(water)
    molecules = positions.reshape(len(positions), 27, 3, 3)
    oxygen, one, other = molecules.unbind(dim=2)
    assert ((one - oxygen).norm(dim=-1) - 0.9572).abs().max() < 1e-3
    assert ((other - oxygen).norm(dim=-1) - 0.9572).abs().max() < 1e-3
    assert ((other - one).norm(dim=-1) - 1.5139).abs().max() < 1e-3
    assert set(water.system.kinds) == {"O(HH)", "H(O(H))"}
    assert water.system.structure.elements.tolist() == ["O", "H", "H"] * 27


def test_water_is_neutral_at_rest_and_warm(water):
    charges = water.system.charges.reshape(27, 3)
    torch.testing.assert_close(charges.sum(dim=1), torch.zeros(27, dtype=torch.float64))
    assert (charges[:, 1] > 0.4).all()
    assert momentum(water).max() < 1e-3
    assert temperature(water, 81) == pytest.approx(300, rel=0.1)


def test_alanine_dipeptide_is_warm_left_handed_and_has_no_box(alanine):
    positions, _ = arrays(alanine)
    assert positions.shape == (200, 22, 3)
    assert alanine.recordings[0].boxes is None
    assert temperature(alanine, 12) == pytest.approx(300, rel=0.08)
    names = alanine.system.structure.atom_names.tolist()
    n, ca, cb, c = (positions[:, names.index(a, 6)] for a in ("N", "CA", "CB", "C"))
    volume = torch.linalg.cross(n - ca, c - ca).mul(cb - ca).sum(dim=-1)
    assert (volume > 0).all()
    assert float(alanine.system.charges.sum()) == pytest.approx(0, abs=1e-6)
    assert float(alanine.system.masses.sum()) == pytest.approx(144.17, abs=0.02)


def test_every_frame_has_its_energy(argon, alanine):
    for recordings in (argon, alanine):
        potential = recordings.recordings[0].potential
        assert len(potential) == len(recordings.recordings[0])
        assert (potential < 0).all()


def test_units_seed_engine_and_forces_are_recorded(argon):
    said = argon.provenance
    assert said["origin"] == "undula simulate argon, preset tiny"
    assert said["engine"].startswith("OpenMM ")
    assert said["engine"].endswith("platform CPU")
    assert said["seed"] == 0
    assert "sigma 0.34 nm, epsilon 0.99774 kJ/mol" in said["forces"]
    assert not said["wrapped"]
    assert argon.manifest["units"]["length"] == "Å"
    argon.verify()


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(platform, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(quick(seed=seed, platform=platform), tmp_path / name)
    first, second, third = (content(tmp_path / name) for name in "abc")
    assert first == second
    assert first["argon_0.positions.npy"] != third["argon_0.positions.npy"]


def test_trajectories_of_one_folder_are_different(tmp_path):
    made = simulate(quick(trajectories=2), tmp_path / "two")
    (one, _), (other, _) = arrays(made, 0), arrays(made, 1)
    assert (one[0] - other[0]).abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [quick(), quick(platform="CPU"), tiny("ala2", frames=6, checkpoint_frames=2)],
    ids=["reference", "cpu", "langevin"],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(config, tmp_path):
    def die(line):
        if " 2 of 6 frames" in line:
            raise KeyboardInterrupt

    lines = []
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "killed", say=die)
    name = f"{config.system}_0"
    unfinished = tmp_path / "killed" / f"{name}.unfinished"
    (unfinished / "motion-00000002.npy").write_bytes(b"a half-written stretch")
    simulate(config, tmp_path / "killed", say=lines.append)
    assert f"{name}: goes on from frame 3" in lines
    simulate(config, tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not unfinished.exists()


def test_finished_trajectories_are_kept_and_a_finished_folder_is_opened(tmp_path):
    config, lines = quick(trajectories=2), []

    def die(line):
        if "argon_1: relaxing" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "out", say=die)
    simulate(config, tmp_path / "out", say=lines.append)
    assert lines[0] == "argon_0: already there"
    simulate(config, tmp_path / "out", say=lines.append)
    assert lines[-1].endswith("is complete")


def test_another_request_in_the_same_folder_is_refused_by_name(tmp_path):
    simulate(quick(), tmp_path / "out")
    with pytest.raises(UsageError, match="begun with seed=0, not 1"):
        simulate(quick(seed=1), tmp_path / "out")


def test_as_published_is_not_equilibrated_and_drifts(tmp_path):
    config = replace(preset("argon", "paper"), trajectories=1, frames=20, platform="CPU")
    made = simulate(config, tmp_path / "argon")
    assert len(made.system) == 258
    assert float(made.recordings[0].box(0)[0, 0]) == pytest.approx(27.2706, abs=1e-3)
    assert made.provenance["wrapped"]
    assert momentum(made).min() > 0.01
    potential = made.recordings[0].potential
    assert potential[0] < potential[-1] - 100


def test_viewers_get_a_pdb_and_an_xtc(tmp_path):
    made = simulate(tiny("tip4p", frames=3), tmp_path / "out", xtc=True)
    seen = mdtraj.load(
        str(tmp_path / "out" / "tip4p_0.xtc"), top=str(tmp_path / "out" / "tip4p.pdb")
    )
    positions, _ = arrays(made)
    assert seen.n_atoms == 81
    assert np.abs(seen.xyz * 10 - positions.numpy()).max() < 0.006
    np.testing.assert_allclose(seen.time, [0, 0.1, 0.2], atol=1e-5)
    np.testing.assert_allclose(
        seen.unitcell_lengths[0] * 10, made.recordings[0].box(0)[0, 0], rtol=1e-4
    )


@pytest.fixture(scope="module")
def peptide(tmp_path_factory):
    """Write the first six residues of villin, heavy atoms only."""
    path = tmp_path_factory.mktemp("peptide") / "six.residues.pdb"
    topology, _, _ = villin()
    whole = mdtraj.load(str(topology))
    whole.atom_slice(whole.topology.select("resid < 6 and element != H")).save_pdb(str(path))
    return path


def test_a_protein_gets_its_hydrogens_and_is_simulated(peptide, tmp_path):
    config = replace(
        preset(str(peptide), "tiny"), frames=3, trajectories=1, equilibration_ps=0.1, platform="CPU"
    )
    made = simulate(config, tmp_path / "out", structure=peptide)
    assert [recording.name for recording in made.recordings] == ["six_0"]
    assert "H" in made.system.structure.elements
    assert made.system.structure.residues == 6
    assert made.system.molecule_count == 1
    assert made.recordings[0].boxes is None
    request = json.loads((tmp_path / "out" / "request.json").read_text())
    assert request["topology"]["name"] == "six.residues.pdb"
    assert open_recordings(tmp_path / "out").provenance["forces"].startswith("AMBER99SB-ILDN, OBC")


@pytest.mark.parametrize("solvent", ["implicit", pytest.param("explicit", marks=pytest.mark.slow)])
def test_a_killed_protein_goes_on_with_the_same_hydrogens_and_waters(solvent, peptide, tmp_path):
    config = replace(
        preset(str(peptide), "tiny", solvent=solvent),
        frames=2,
        checkpoint_frames=1,
        every_ps=0.008,
        trajectories=1,
        equilibration_ps=0.04,
        platform="CPU",
    )

    def die(line):
        if " 1 of 2 frames" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "out", structure=peptide, say=die)
    kept = tmp_path / "out" / "six_0.unfinished" / "motion-00000000.npy"
    first = np.load(kept)[0, 0]
    made = simulate(config, tmp_path / "out", structure=peptide)
    np.testing.assert_array_equal(made.recordings[0].positions[0], first)
    step = made.recordings[0].positions[1] - made.recordings[0].positions[0]
    assert 0 < np.abs(step).max() < 1.0
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_a_system_and_a_structure_must_fit_each_other(peptide, tmp_path):
    with pytest.raises(UsageError, match="a protein needs a structure"):
        simulate(quick(), tmp_path / "out", structure=peptide)
