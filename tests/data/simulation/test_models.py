from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("openmm", reason="OpenMM is not installed: the extra simulate")
pytest.importorskip("pdbfixer", reason="PDBFixer is not installed: the extra simulate")

import openmm
from openmm import unit

from undula.data.simulation.engine import Engine, chosen_platform, seed_of
from undula.data.simulation.models import alanine_dipeptide, argon, water
from undula.data.simulation.settings import preset
from undula.errors import MachineError, UsageError


def generator():
    return torch.Generator().manual_seed(0)


def energy(model, positions):
    context = openmm.Context(
        model.system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference")
    )
    context.setPositions(positions)
    state = context.getState(energy=True)
    return state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_two_argon_atoms_attract_as_lennard_jones_says():
    model = argon(replace(preset("argon"), particles=250))
    far = np.array([[0.4 * (k % 2) + 0.01 * k, 0, 0] for k in range(250)])
    pair = model.system.getForce(0)
    for index in range(2, 250):
        pair.setParticleParameters(index, 0, 0.34, 0)
    pair.setUseDispersionCorrection(False)
    depth, ratio = 120 * 0.00831446261815324, (0.34 / 0.41) ** 6
    assert energy(model, far) == pytest.approx(4 * depth * (ratio**2 - ratio))


def test_published_argon_is_zero_at_the_cut_off():
    config = preset("argon", "paper")
    model = argon(config)
    pair, shift = model.system.getForce(0), model.system.getForce(1)
    pair.setUseDispersionCorrection(False)
    for index in range(2, config.particles):
        pair.setParticleParameters(index, 0, 0.34, 0)
        shift.addExclusion(0, index)
        pair.addException(0, index, 0, 0.34, 0)
        for other in range(1, index):
            shift.addExclusion(other, index)
            pair.addException(other, index, 0, 0.34, 0)
    places = np.zeros((config.particles, 3))
    places[1, 0] = 1.0199
    assert energy(model, places) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("name", "molecules"), [("tip3p", 258), ("tip4p", 251)])
def test_published_water_has_the_published_number_of_molecules(name, molecules):
    model = water(preset(name, "paper"))
    assert len(model.recorded) == 3 * molecules
    np.testing.assert_allclose(model.box_nm, 2.0 * np.eye(3))
    with pytest.raises(UsageError, match=f"holds {molecules} molecules, not 100"):
        water(replace(preset(name, "paper"), particles=100))


def test_only_the_published_system_may_drift():
    for build, name in ((argon, "argon"), (water, "tip3p"), (water, "tip4p")):
        for kind, expected in (("clean", True), ("paper", False)):
            forces = build(preset(name, kind)).system.getForces()
            assert any(isinstance(f, openmm.CMMotionRemover) for f in forces) == expected


def test_starts_keep_atoms_apart_and_follow_the_generator():
    model = argon(preset("argon"))
    one, same = model.start(generator()), model.start(generator())
    np.testing.assert_array_equal(one, same)
    apart = np.linalg.norm(one[:, None] - one[None], axis=-1) + 9 * np.eye(250)
    assert apart.min() > 0.3
    assert (one > 0).all()
    assert (one < model.box_nm[0, 0]).all()
    assert np.abs(model.start(torch.Generator().manual_seed(1)) - one).max() > 0.1


def test_the_published_start_is_turned_out_of_its_box():
    model = argon(preset("argon", "paper"))
    places = model.start(generator())
    assert places.min() < 0 or places.max() > model.box_nm[0, 0]


def test_alanine_dipeptide_is_bonded_as_it_should():
    model = alanine_dipeptide(preset("ala2"))
    assert model.topology.getNumBonds() == 21
    assert model.system.getNumConstraints() == 12


def test_seeds_differ_by_purpose_and_are_never_the_one_that_means_any():
    seeds = {seed_of(0, trajectory, k) for trajectory in range(50) for k in range(4)}
    assert len(seeds) == 200
    assert min(seeds) > 0
    assert max(seeds) < 2**31


def test_a_platform_that_is_not_here_is_named_with_those_that_are():
    assert chosen_platform("Reference") == "Reference"
    assert chosen_platform("auto") != "auto"
    with pytest.raises(MachineError, match=r"no platform Abacus here; it has .*Reference"):
        chosen_platform("Abacus")


def test_a_damaged_checkpoint_is_an_error_of_ours():
    config = replace(preset("argon", "tiny"), particles=27)
    with pytest.raises(MachineError, match="argon stopped in frames 1 to 2"):
        Engine(argon(config), config, "Reference").frames(b"damaged", 2, 0, 0)
