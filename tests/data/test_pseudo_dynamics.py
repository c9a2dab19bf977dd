import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.data.bundled import villin
from undula.data.prepare import aligned, surface_of
from undula.data.prepare_config import PrepareConfig
from undula.data.pseudo_dynamics import (
    ORIGIN,
    PseudoDynamicsConfig,
    ornstein_uhlenbeck,
    prepare_static,
    pseudo_trajectory,
)
from undula.errors import InputError, UsageError
from undula.geometry.elastic_network import anisotropic_network_modes
from undula.geometry.frames import random_rotation
from undula.io.bonds import covalent_bonds
from undula.io.datasets import open_dataset
from undula.io.structures import load_structure

CONFIG = PrepareConfig(near=64, local=16, uniform=16, fixed=128, frames_per_shard=2)
SHORT = PseudoDynamicsConfig(frames=5)


@pytest.fixture(scope="module")
def protein():
    return load_structure(villin()[0])


@pytest.fixture(scope="module")
def folder(peptide, tmp_path_factory):
    out = tmp_path_factory.mktemp("static")
    prepare_static([peptide[0]], out, CONFIG, SHORT)
    return out


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_path_starts_at_rest_and_spreads_as_an_overdamped_spring_does():
    times = torch.tensor([0.0, 0.5, 1.0, 4.0, 40.0])
    for relaxation in (0.5, 2.0):
        paths = ornstein_uhlenbeck(times, torch.full((40_000,), relaxation), generator())
        assert (paths[0] == 0).all()
        expected = 1 - (-2 * times.double() / relaxation).exp()
        torch.testing.assert_close(paths.square().mean(dim=1), expected, atol=0.03, rtol=0)


def test_a_path_forgets_at_its_own_rate_whatever_the_spacing():
    relaxation = torch.full((40_000,), 3.0)
    coarse = ornstein_uhlenbeck(torch.tensor([0.0, 60.0, 63.0]), relaxation, generator())
    times = torch.tensor([0.0, 60.0, 60.2, 61.0, 63.0])
    fine = ornstein_uhlenbeck(times, relaxation, generator(1))
    for paths in (coarse, fine):
        assert float((paths[1] * paths[-1]).mean()) == pytest.approx(np.exp(-1), abs=0.02)


def test_the_first_frame_is_the_structure_and_times_grow_by_a_factor(protein):
    made = pseudo_trajectory(protein, PseudoDynamicsConfig(frames=9), generator())
    torch.testing.assert_close(made.positions[0], protein.positions, atol=1e-4, rtol=0)
    assert made.times_ps[0] == 0
    assert made.times_ps[1] == pytest.approx(1.0)
    assert made.times_ps[-1] == pytest.approx(200.0)
    ratio = made.times_ps[2:] / made.times_ps[1:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_the_alpha_carbons_end_about_an_angstrom_from_the_first_frame(protein):
    on, ends, early = protein.alpha_carbons, [], []
    for seed in range(12):
        made = aligned(pseudo_trajectory(protein, PseudoDynamicsConfig(), generator(seed)))
        away = (made.positions[:, on] - made.positions[0, on]).square().sum(dim=2).mean(dim=1)
        ends.append(float(away[-5:].mean()))
        early.append(float(away[1]))
    assert 0.7 < np.mean(ends) ** 0.5 < 1.4
    assert np.mean(early) < 0.5 * np.mean(ends)


def test_bonds_within_a_residue_keep_their_lengths_and_those_between_nearly(protein):
    made = pseudo_trajectory(protein, PseudoDynamicsConfig(), generator())
    first, second = covalent_bonds(protein)
    length = (made.positions[:, first] - made.positions[:, second]).double().norm(dim=2)
    residue = torch.from_numpy(protein.residue_index)
    change = (length - length[0]).abs()
    within = residue[first] == residue[second]
    assert change[:, within].max() < 1e-3
    assert change[:, ~within].square().mean().sqrt() < 0.3


def test_side_chains_swing_farther_the_deeper_and_the_more_exposed(protein):
    still = PseudoDynamicsConfig(amplitude=1e-6, frames=60)
    made = pseudo_trajectory(protein, still, generator())
    away = (made.positions - made.positions[0]).square().sum(dim=2).mean(dim=0).sqrt()
    mean = {name: float(away[protein.atom_names == name].mean()) for name in ("CA", "CB", "CG")}
    assert mean["CA"] < 1e-3 < 0.1 < mean["CB"] < mean["CG"]
    assert float(away[protein.residue_names == "PRO"].max()) < 1e-3
    quiet = pseudo_trajectory(protein, replace(still, swing=0.0), generator())
    torch.testing.assert_close(quiet.positions[-1], quiet.positions[0], atol=1e-3, rtol=0)


def test_the_network_turns_with_the_molecule(protein):
    still = PseudoDynamicsConfig(swing=0.0, frames=4)
    rotation = random_rotation(generator(3))
    exact = replace(protein, positions=protein.positions.double())
    turned = replace(exact, positions=exact.positions @ rotation.T + 7.0)
    before = pseudo_trajectory(exact, still, generator())
    after = pseudo_trajectory(turned, still, generator())
    torch.testing.assert_close(
        after.positions, before.positions @ rotation.T + 7.0, atol=1e-6, rtol=0
    )


def test_a_soft_mode_is_wide_and_slow(protein):
    on = protein.alpha_carbons
    stiffness, modes = anisotropic_network_modes(protein.positions[on], 3)
    config = PseudoDynamicsConfig(modes=3, swing=0.0, amplitude=0.1, frames=200, longest_ps=1e4)
    first = protein.positions[on].double()
    moved = torch.cat(
        [
            pseudo_trajectory(protein, config, generator(seed)).positions[:, on].double() - first
            for seed in range(8)
        ]
    )
    along = torch.einsum("fnc,knc->fk", moved, modes).reshape(8, 200, 3)
    square = along.square().mean(dim=0)
    width = square[-60:].mean(dim=0)
    assert width[0] > width[2]
    share = square[:40].mean(dim=0) / width
    assert stiffness[0] < stiffness[2]
    assert share[0] < share[2]


def test_a_structure_of_three_residues_is_refused(protein):
    few = protein.select(protein.residue_index < 3)
    with pytest.raises(InputError, match="3 Cα are too few"):
        pseudo_trajectory(few, SHORT, generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 2}, "frames should be at least 3"),
        ({"modes": 0}, "modes should be at least 1"),
        ({"amplitude": -1.0}, "amplitude should be positive"),
        ({"swing": -0.1}, "swing should not be negative"),
        ({"longest_ps": 0.5}, "longest_ps"),
    ],
)
def test_impossible_motions_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        PseudoDynamicsConfig(**options)


def test_a_data_set_says_that_it_is_no_simulation(folder):
    dataset = open_dataset(folder / "peptide", verify=True)
    assert dataset.manifest["origin"] == ORIGIN
    (trajectory,) = dataset.trajectories
    assert len(trajectory) == 5
    np.testing.assert_allclose(trajectory.times_ps, SHORT.times_ps)
    recorded = json.loads((folder / "static.json").read_text())
    assert recorded["datasets"] == {"peptide": dataset.sha256}
    assert recorded["skipped"] == {}


def test_fixed_points_know_the_exact_distance_to_every_made_up_frame(folder):
    dataset = open_dataset(folder / "peptide")
    (trajectory,) = dataset.trajectories
    points = torch.from_numpy(trajectory.fixed[:, :3]).double()
    for frame in (0, 4):
        positions = torch.from_numpy(np.array(trajectory.positions[frame]))
        exact = surface_of(replace(dataset.structure, positions=positions))
        found = torch.from_numpy(np.array(trajectory.fixed_distances(frame))).double()
        torch.testing.assert_close(found, exact.signed_distance(points), atol=1e-4, rtol=0)


def test_what_was_cut_is_made_again_to_the_same_bytes(folder, peptide, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set" / "peptide" / "manifest.json").unlink()
    (tmp_path / "set" / "peptide" / "pseudo" / "fixed-0001.npy").unlink()
    prepare_static([peptide[0]], tmp_path / "set", CONFIG, SHORT)
    assert contents(tmp_path / "set") == contents(folder)


def test_a_file_that_fails_is_skipped_and_the_next_is_made(peptide, tmp_path):
    broken = tmp_path / "broken.pdb"
    broken.write_text("ATOM  nonsense\n")
    made = prepare_static([broken, peptide[0]], tmp_path / "sets", CONFIG, SHORT)
    assert list(made.datasets) == ["peptide"]
    assert "broken.pdb" in made.skipped["broken"]


def test_other_rules_are_refused_and_named(folder, peptide):
    with pytest.raises(UsageError, match="begun with frames=5, not 6"):
        prepare_static([peptide[0]], folder, CONFIG, replace(SHORT, frames=6))


def test_two_files_of_one_name_are_refused(peptide, tmp_path):
    other = tmp_path / "peptide.pdb"
    other.write_bytes(peptide[0].read_bytes())
    with pytest.raises(UsageError, match="two of the files are called peptide"):
        prepare_static([peptide[0], other], tmp_path / "sets", CONFIG, SHORT)
