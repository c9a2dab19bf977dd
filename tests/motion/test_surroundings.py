import torch
from tests.motion.small_systems import BOX, argon, chain, system, waters, window

from undula.geometry.periodic import periodic_pairs
from undula.motion.surroundings import bond_table, graph_of


def matrix(table, atoms):
    i, j = torch.cartesian_prod(torch.arange(atoms), torch.arange(atoms)).T
    return table.kinds(torch.stack([i, j])).reshape(atoms, atoms)


def test_counts_bonds_between_atoms_of_a_chain_up_to_three():
    places = torch.arange(7)
    apart = (places[:, None] - places).abs()
    expected = torch.where(apart <= 3, apart, 0)
    assert torch.equal(matrix(bond_table(chain(7)), 7), expected)


def test_takes_the_shorter_way_round_a_ring():
    ring = system(["C"] * 5, [(k, (k + 1) % 5) for k in range(5)], [0] * 5)
    found = matrix(bond_table(ring), 5)
    assert found.max() == 2
    assert found[0].tolist() == [0, 1, 2, 2, 1]


def test_free_atoms_have_no_bonds():
    table = bond_table(argon(4))
    assert len(table.codes) == 0
    assert not matrix(table, 4).any()


def test_knows_pairs_of_any_frame_and_none_across_molecules():
    table = bond_table(waters(2))
    pairs = torch.tensor([[0, 6 + 1, 12 + 1, 0, 3], [1, 6 + 2, 12 + 0, 3, 5]])
    assert table.kinds(pairs).tolist() == [1, 2, 1, 0, 1]
    assert table.kinds(pairs[:, :0]).tolist() == []


def test_frames_are_parts_that_are_not_joined_and_each_is_as_alone():
    atoms, seen = argon(12), window(argon(12))
    frames = seen.positions[[0, 6, 11]]
    graph = graph_of(frames, BOX.expand(3, 3, 3), 4.0, bond_table(atoms))
    assert graph.atoms == 36
    frame = graph.pairs // 12
    assert torch.equal(frame[0], frame[1])
    for number in range(3):
        pairs, _ = periodic_pairs(frames[number], BOX, 4.0)
        mine = graph.pairs[:, frame[0] == number] - 12 * number
        assert {tuple(pair) for pair in mine.T.tolist()} == {tuple(p) for p in pairs.T.tolist()}
    assert float(graph.vectors.norm(dim=1).max()) < 4.0


def test_atoms_far_apart_and_single_atoms_have_no_pairs():
    for count in (1, 2):
        places = 100 * torch.arange(3.0 * count).reshape(1, count, 3)
        graph = graph_of(places, None, 4.0, bond_table(argon(count)))
        assert graph.pairs.shape == (2, 0)


def test_all_pairs_are_of_one_kind_where_bonds_are_not_asked_for():
    assert graph_of(window(chain(4)).positions, None, 4.0, None).kinds is None
