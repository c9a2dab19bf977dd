import numpy as np
import pytest
import torch
from tests.data.fixed_point import swinging, write_fluid

from undula.data.fluids import is_archive, load_fluid
from undula.errors import InputError

WATER_NM = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])


@pytest.fixture
def argon(tmp_path):
    return write_fluid(tmp_path / "argon.npz", *swinging(30, 10, seed=0))


def water(path, molecules=3, order=(0, 1, 2)):
    sites = np.arange(molecules)[:, None, None] * [0.4, 0.0, 0.0] + WATER_NM[list(order)]
    positions = np.repeat(sites.reshape(1, -1, 3), 6, axis=0)
    return write_fluid(path, positions, np.zeros_like(positions[:2]))


def test_positions_and_velocities_are_those_of_the_stated_formula(argon):
    stored = np.load(argon)
    steps = np.concatenate(
        [stored["position_first"][None].astype(np.int32), stored["position_step"]]
    )
    positions = np.cumsum(steps, axis=0) * stored["position_unit_nm"]
    velocities = stored["velocity"] * stored["velocity_unit_nm_per_ps"]
    _, frames = load_fluid(argon)
    np.testing.assert_allclose(frames.positions.numpy(), 10 * positions, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(frames.velocities.numpy(), 10 * velocities, rtol=1e-6)
    assert torch.equal(frames.box, torch.eye(3, dtype=torch.float64) * 20)
    assert (len(frames), len(frames.velocities), frames.frame_ps) == (30, 10, 0.1)
    assert frames.potential is None


def test_atoms_far_from_each_other_are_argon(argon):
    system, frames = load_fluid(argon)
    assert set(system.kinds) == {"AR"}
    assert system.molecule_count == 8
    assert system.bonds.shape == (2, 0)
    assert "8 were taken for argon" in str(frames.notices[0])


def test_three_atoms_at_the_distances_of_water_are_water(tmp_path):
    system, frames = load_fluid(water(tmp_path / "w.npz"))
    assert system.structure.elements.tolist() == ["O", "H", "H"] * 3
    assert system.structure.atom_names.tolist()[:3] == ["O", "H1", "H2"]
    assert sorted(map(tuple, system.bonds.T.tolist())) == [
        (0, 1), (0, 2), (3, 4), (3, 5), (6, 7), (6, 8)
    ]  # fmt: skip
    assert system.molecules.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert "water" in str(frames.notices[0])


def test_other_atoms_are_refused(tmp_path):
    with pytest.raises(InputError, match="neither argon nor water"):
        load_fluid(water(tmp_path / "w.npz", order=(1, 0, 2)))


def test_atoms_that_touch_through_the_wall_are_no_argon(tmp_path):
    positions = np.tile([[0.05, 1.0, 1.0], [1.95, 1.0, 1.0]], (6, 1, 1))
    with pytest.raises(InputError, match="neither argon nor water"):
        load_fluid(write_fluid(tmp_path / "a.npz", positions, np.zeros_like(positions[:2])))


def test_energies_are_kept(tmp_path):
    energies = np.arange(30, dtype=np.float32)
    path = write_fluid(tmp_path / "a.npz", *swinging(30, 10, seed=0), potential_kj_mol=energies)
    assert load_fluid(path)[1].potential.tolist() == energies.tolist()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"frame_ps": np.float64(0)}, "frame_ps should be positive"),
        ({"frame_ps": np.ones(2)}, "frame_ps should hold 1 real"),
        ({"box_nm": np.array([2.0, np.nan, 2.0])}, "box_nm should be positive"),
        ({"position_step": np.zeros((29, 8, 3))}, "position_step should hold integers"),
        ({"position_step": np.zeros((29, 7, 3), dtype=np.int8)}, "do not belong together"),
        ({"velocity": np.zeros((31, 8, 3), dtype=np.int8)}, "31 frames of velocities for 30"),
        ({"potential_kj_mol": np.zeros(3, dtype=np.float32)}, "one energy a frame"),
        ({"velocity": np.array([{}])}, "pickled objects, which are never opened"),
    ],
)
def test_arrays_that_cannot_be_are_refused(tmp_path, arrays, said):
    path = write_fluid(tmp_path / "a.npz", *swinging(30, 10, seed=0), **arrays)
    with pytest.raises(InputError, match=said):
        load_fluid(path)


def test_other_and_damaged_files_are_refused(tmp_path, argon):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="there is no position_first"):
        load_fluid(tmp_path / "other.npz")
    (tmp_path / "cut.npz").write_bytes(argon.read_bytes()[:-200])
    with pytest.raises(InputError, match="not a whole zip archive"):
        load_fluid(tmp_path / "cut.npz")
    flipped = bytearray(argon.read_bytes())
    flipped[200:260] = b"\0" * 60
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with pytest.raises(InputError, match="not a whole zip archive"):
        load_fluid(tmp_path / "flipped.npz")
    (tmp_path / "text.npz").write_text("HEADER")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "array.npy"):
        assert not is_archive(tmp_path / name)
        with pytest.raises(InputError, match="not a whole zip archive"):
            load_fluid(tmp_path / name)
    assert is_archive(argon)
    with pytest.raises(InputError, match="cannot read"):
        is_archive(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("file", "atoms", "frames", "known"),
    [("argon/argon_1.npz", 250, 10000, 2000), ("tip4p/tip4pew_1.npz", 774, 1000, 200)],
)
def test_reads_the_shared_fluids(shared, file, atoms, frames, known):
    system, recorded = load_fluid(shared / file)
    assert recorded.positions.shape == (frames, atoms, 3)
    assert recorded.velocities.shape == (known, atoms, 3)
    kelvin = 100 if atoms == 250 else 300
    kinetic = (recorded.velocities.double().square().sum(dim=-1) * system.masses).sum(dim=1).mean()
    freedom = 3 * atoms - 3 - (0 if atoms == 250 else atoms)
    assert float(kinetic) / (freedom * 0.831446) == pytest.approx(kelvin, rel=0.03)
