"""A forecast of moving atoms knows no place, no direction, no hand, no numbering and no wall."""

from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import BOX, ENCODER, argon, chain, moved, trained, waters, window
from tests.nn.turning import reflection, rotation

from undula.motion.observation import observation
from undula.motion.surroundings import bond_table
from undula.motion.windows import Window
from undula.types import MolecularSystem

LAGS = torch.tensor([0.1, 0.35, 0.4, 0.9, 1.6], dtype=torch.float64)
ALIKE = {"rtol": 0, "atol": 1e-8}
SHIFT = torch.tensor([25.0, -40.0, 12.0], dtype=torch.float64)
POSES = {
    "turned and shifted": (rotation(1), SHIFT),
    "mirrored": (reflection(2), 0 * SHIFT),
}
SYSTEMS = {"argon in a box": argon(12), "water": waters(4), "chain": chain(6)}
MODELS = {
    "painn": ENCODER,
    "egnn": replace(ENCODER, backbone="egnn"),
    "painn without bonds": replace(ENCODER, bonds=False),
    "egnn without bonds": replace(ENCODER, backbone="egnn", bonds=False),
    "the last frame alone": replace(ENCODER, oldest=0),
}
PAIRS = [
    *((name, system) for name in ("painn", "egnn") for system in SYSTEMS),
    ("painn without bonds", "water"),
    ("egnn without bonds", "chain"),
    ("the last frame alone", "argon in a box"),
]


@pytest.fixture(scope="module", params=PAIRS, ids=", ".join)
def case(request):
    name, system = request.param
    return trained(SYSTEMS[system], MODELS[name]), SYSTEMS[system]


@pytest.fixture(scope="module")
def model(case):
    return case[0]


@pytest.fixture(scope="module")
def atoms(case):
    return case[1]


def without_velocities(seen: Window) -> Window:
    return replace(seen, velocities=None)


def assert_alike(found, expected, matrix=None, shift=0.0, order=slice(None)):
    matrix = torch.eye(3, dtype=torch.float64) if matrix is None else matrix
    mean = (expected.mean @ matrix.T + shift)[:, order]
    torch.testing.assert_close(found.mean, mean, **ALIKE)
    torch.testing.assert_close(
        found.velocities, (expected.velocities @ matrix.T)[:, order], **ALIKE
    )
    torch.testing.assert_close(found.spread, expected.spread[:, order], **ALIKE)


def test_the_network_moves_the_forecast_of_these_tests_by_much(model, atoms):
    added = model.contributions(window(atoms), LAGS)
    assert (added.abs().mean(dim=(1, 2, 3)) > 1e-3).all()
    linear = model.climatology.expected(window(atoms), LAGS)
    found = model.forecast(window(atoms), LAGS)
    assert (found.velocities - linear.velocities).abs().mean() > 1e-3
    assert (found.spread / linear.spread - 1).abs().mean() > 1e-3


@pytest.mark.parametrize("known", [True, False], ids=["with velocities", "without"])
@pytest.mark.parametrize(("matrix", "shift"), POSES.values(), ids=POSES.keys())
def test_turns_mirrors_and_shifts_with_the_window(model, atoms, matrix, shift, known):
    seen = window(atoms) if known else without_velocities(window(atoms))
    expected = model.forecast(seen, LAGS)
    assert_alike(model.forecast(moved(seen, matrix, shift), LAGS), expected, matrix, shift)


def relabelled(atoms: MolecularSystem, order: torch.Tensor) -> MolecularSystem:
    index = order.numpy()
    return replace(
        atoms,
        bonds=order.argsort()[atoms.bonds],
        molecules=atoms.molecules[order],
        kinds=atoms.kinds[index],
        masses=atoms.masses[order],
        structure=replace(atoms.structure, elements=atoms.structure.elements[index]),
    )


def test_relabelled_atoms_have_the_relabelled_forecast(model, atoms):
    seen = window(atoms)
    order = torch.randperm(len(atoms), generator=torch.Generator().manual_seed(1))
    other = replace(
        seen,
        system=relabelled(atoms, order),
        positions=seen.positions[:, order],
        velocities=seen.velocities[:, order],
    )
    assert_alike(model.forecast(other, LAGS), model.forecast(seen, LAGS), order=order)


@pytest.mark.parametrize("kind", ["painn", "egnn"])
def test_any_image_of_any_atom_has_the_same_forecast_in_that_image(kind):
    model, seen = trained(argon(12), MODELS[kind]), window(argon(12))
    walls = torch.randint(-3, 4, (12, 3), generator=torch.Generator().manual_seed(2))
    away = walls.double() @ BOX
    found = model.forecast(replace(seen, positions=seen.positions + away), LAGS)
    assert_alike(found, model.forecast(seen, LAGS), shift=away)


def test_any_image_of_any_molecule_has_the_same_forecast_in_that_image():
    seen = replace(window(waters(4)), box=BOX)
    model = trained(waters(4))
    walls = torch.tensor([[0, 0, 0], [1, 0, 0], [0, -2, 1], [3, 1, -1]])
    away = (walls.double() @ BOX)[seen.system.molecules]
    found = model.forecast(replace(seen, positions=seen.positions + away), LAGS)
    assert_alike(found, model.forecast(seen, LAGS), shift=away)
    without = model.forecast(replace(seen, box=None), LAGS)
    assert (without.mean - model.forecast(seen, LAGS).mean).abs().max() > 1e-4


def test_bonds_are_heard_where_they_are_asked_for():
    with_bonds, without = (trained(chain(6), MODELS[m]) for m in ("painn", "painn without bonds"))
    seen = window(chain(6))
    other = replace(seen, system=replace(chain(6), bonds=chain(6).bonds[:, :-1]))
    for model, heard in ((with_bonds, True), (without, False)):
        views = []
        for one in (seen, other):
            kinds = model.climatology.kind_of_atoms(one.system)
            ages = model.model.config.encoder.ages(len(one))
            bonds = bond_table(one.system) if heard else None
            told = observation([one], kinds, model.usual, ages)
            views.append(model.model.encoder(told, bonds).scalars)
        assert torch.equal(*views) is not heard


def test_charges_are_heard_where_they_are_asked_for():
    deaf, keen = (trained(chain(6), replace(ENCODER, charges=charges)) for charges in (False, True))
    seen = window(chain(6))
    charged = replace(seen, system=replace(chain(6), charges=torch.linspace(-1, 1, 6)))
    assert_alike(deaf.forecast(charged, LAGS), deaf.forecast(seen, LAGS))
    assert (keen.forecast(charged, LAGS).mean - keen.forecast(seen, LAGS).mean).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["painn", "egnn"])
@pytest.mark.parametrize("proper", [True, False], ids=["turned", "mirrored"])
def test_a_superposed_molecule_turns_but_its_mirror_image_is_another_one(kind, proper):
    atoms = chain(6)
    reference = window(atoms, 9).now
    model = trained(atoms, MODELS[kind], reference=reference)
    seen = window(atoms)
    matrix = rotation(5) if proper else reflection(5)
    expected = model.forecast(seen, LAGS)
    found = model.forecast(moved(seen, matrix, SHIFT), LAGS)
    if proper:
        assert_alike(found, expected, matrix, SHIFT)
    else:
        assert (found.mean - expected.mean @ matrix.T - SHIFT).abs().max() > 1e-2


def test_a_superposed_molecule_forgets_how_it_tumbled():
    atoms = chain(6)
    model = trained(atoms, reference=window(atoms, 9).now)
    seen = window(atoms)
    spins = torch.stack([rotation(seed) for seed in range(len(seen) - 1)] + [torch.eye(3).double()])
    tumbled = replace(seen, positions=seen.positions @ spins.mT, velocities=None)
    still = replace(seen, velocities=None)
    assert_alike(model.forecast(tumbled, LAGS), model.forecast(still, LAGS))
