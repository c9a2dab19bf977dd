import pytest
import torch
from tests.geometry.test_elastic_network import MIRROR, chain, rotation

from undula.geometry.elastic_network import anisotropic_network_modes
from undula.geometry.thermal_motion import THERMAL, thermal_displacements

MANY = 20_000


def draws(positions, count=MANY, **asked):
    return thermal_displacements(positions, count, torch.Generator().manual_seed(0), **asked)


def test_two_nodes_stretch_their_spring_by_the_thermal_length():
    pair = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 8.0]]).double()
    found = draws(pair, thermal=0.7)
    stretch = found[:, 1, 2] - found[:, 0, 2]
    assert float(stretch.square().mean()) == pytest.approx(0.7, rel=0.03)
    assert found[:, :, :2].abs().max() == 0


def test_every_mode_holds_half_of_kt():
    positions = chain()
    stiffness, modes = anisotropic_network_modes(positions, 100)
    assert len(stiffness) == 3 * 12 - 6
    amplitude = torch.einsum("cnd,knd->ck", draws(positions), modes)
    energy = (stiffness * amplitude.square()).mean(dim=0) / 2
    torch.testing.assert_close(energy, torch.full_like(energy, THERMAL / 2), rtol=0.06, atol=0)
    apart = torch.corrcoef(amplitude.T) - torch.eye(len(stiffness), dtype=torch.float64)
    assert apart.abs().max() < 0.04


def test_nothing_is_shifted_or_turned():
    centred = chain() - chain().mean(dim=0)
    found = draws(chain(), 50)
    assert found.mean(dim=1).abs().max() < 1e-9
    momentum = torch.linalg.cross(centred.expand_as(found), found).sum(dim=1)
    assert momentum.abs().max() < 1e-7


@pytest.mark.parametrize(
    ("matrix", "shift"), [(rotation(), 0.0), (MIRROR, 0.0), (rotation(2), -9.0)]
)
def test_draws_turn_with_the_chain(matrix, shift):
    moved = draws(chain() @ matrix.T + shift, 20)
    torch.testing.assert_close(moved, draws(chain(), 20) @ matrix.T, rtol=0, atol=1e-7)


def test_a_colder_or_stiffer_network_moves_less():
    torch.testing.assert_close(draws(chain(), 9, thermal=0.25 * THERMAL), draws(chain(), 9) / 2)


def test_a_node_by_itself_stays():
    assert draws(torch.zeros(1, 3).double(), 4).shape == (4, 1, 3)
    assert not draws(torch.tensor([[0.0] * 3, [99.0] * 3]).double(), 4).any()
