import numpy as np
import pytest

from undula.io.packing import (
    DIRECTIONS,
    LENGTHS,
    from_octahedral,
    octahedral,
    packed,
    unpacked,
)


def directions(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, 3))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the angles between unit vectors, in degrees; exact for small ones."""
    half = np.linalg.norm(one - other, axis=1) / 2
    return np.degrees(2 * np.arcsin(np.minimum(half, 1)))


def rows(kind: str, count: int = 5000, span: float = 65.0) -> np.ndarray:
    """Draw rows whose coordinates span at most ``span`` Å and whose other lengths 20 Å."""
    generator = np.random.default_rng(1)
    result = generator.uniform(-10, 10, size=(count, 11)).astype(np.float32)
    result[:, :3] = generator.uniform(3, 3 + span, size=(count, 3))
    for seed, place in enumerate(DIRECTIONS[kind]):
        result[:, place] = directions(count, seed)
    return result


@pytest.fixture(params=["surface", "pool"])
def kind(request) -> str:
    return request.param


def test_a_row_takes_14_bytes(kind):
    assert packed(rows(kind), kind).numbers.nbytes == 14 * 5000


def test_every_column_is_packed_once(kind):
    columns = [*LENGTHS[kind], *(i for place in DIRECTIONS[kind] for i in range(11)[place])]
    assert sorted(columns) == list(range(11))


def test_lengths_are_rounded_by_half_a_step_at_most(kind):
    before = rows(kind)
    after = np.array(packed(before, kind))
    moved = abs(after - before)[:, LENGTHS[kind]].max(axis=0)
    assert (moved[:3] < 0.0005 + 1e-5).all()
    assert (moved[3:] < 0.00016 + 1e-6).all()


def test_a_point_moves_by_a_thousandth_of_an_angstrom_at_most(kind):
    before = rows(kind)
    after = np.array(packed(before, kind))
    assert np.linalg.norm(after[:, :3] - before[:, :3], axis=1).max() < 0.001


def test_directions_turn_by_a_third_of_a_degree_and_by_one_at_most(kind):
    before = rows(kind, count=200_000)
    after = np.array(packed(before, kind))
    for place in DIRECTIONS[kind]:
        turned = angles(after[:, place].astype(float), before[:, place].astype(float))
        assert turned.mean() == pytest.approx(0.337, abs=0.005)
        assert turned.max() < 0.95


def test_unpacked_directions_have_length_one(kind):
    after = np.array(packed(rows(kind), kind))
    for place in DIRECTIONS[kind]:
        assert abs(np.linalg.norm(after[:, place], axis=1) - 1).max() < 1e-6


def test_axes_corners_and_diagonals_come_back():
    corners = np.array([[x, y, z] for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    special = corners[abs(corners).sum(axis=1) > 0].astype(float)
    special /= np.linalg.norm(special, axis=1, keepdims=True)
    turned = angles(from_octahedral(octahedral(special)), special)
    assert turned.max() < 0.95
    assert turned[(abs(special).max(axis=1)) == 1].max() < 1e-9


def test_opposite_directions_are_kept_apart():
    up = directions(1000)
    found = angles(from_octahedral(octahedral(-up)), -from_octahedral(octahedral(up)))
    assert found.max() < 2 * 0.95


def test_packing_again_changes_nothing(kind):
    once = np.array(packed(rows(kind), kind))
    twice = np.array(packed(once, kind))
    assert abs(twice - once).max() < 2e-5


def test_a_part_is_the_same_part_of_the_whole(kind):
    whole = packed(rows(kind), kind)
    index = np.array([5, 3, 3, 4999])
    assert np.array_equal(whole[100:228], unpacked(whole)[100:228])
    assert np.array_equal(whole[index], unpacked(whole)[index])
    assert whole[:0].shape == (0, 11)


def test_a_column_of_one_value_comes_back(kind):
    before = rows(kind)
    before[:, LENGTHS[kind]] = 7.25
    after = np.array(packed(before, kind))
    assert (after[:, LENGTHS[kind]] == 7.25).all()


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_come_back(kind, count):
    before = rows(kind, count)
    after = np.array(packed(before, kind))
    assert after.shape == (count, 11)
    assert (abs(after - before)[:, LENGTHS[kind]] < 1e-5).all()
