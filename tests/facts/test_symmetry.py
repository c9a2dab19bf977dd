"""From the structure on: what a forecast does when the protein is turned, mirrored or shifted."""

from dataclasses import replace

import pytest
import torch
from tests.surface.mixtures import CONTRACTION, LOCAL, PAPER, bound, fresh, stirred

from undula.data.bundled import villin
from undula.data.prepare import surface_of
from undula.geometry.frames import random_rotation
from undula.io.structures import load_structure
from undula.surface.clouds import router_cloud
from undula.surface.mixture import BACKBONES
from undula.surface.trained_mixture import FirstFrameField

ROTATION = random_rotation(torch.Generator().manual_seed(0))
MIRROR = torch.diag(torch.tensor([1.0, -1.0, 1.0])).double()
SHIFT = torch.tensor([25.0, -40.0, 12.0]).double()
POSES = {
    "turned": (ROTATION, 0 * SHIFT),
    "mirrored": (MIRROR, 0 * SHIFT),
    "shifted": (torch.eye(3).double(), SHIFT),
    "all of it": (MIRROR @ ROTATION, SHIFT),
}
EVERY_POSE = pytest.mark.parametrize(("matrix", "shift"), POSES.values(), ids=POSES.keys())
TOLERANCE = 1e-4
"""Å; measured 0 for all of these, as the own frame is found to 1e-13 Å and then cut to float32."""
ROUNDED = 0.02
"""Å; measured 0.003 (local) and 0.012 to 0.016 (contraction) where the turned protein went
through a PDB file, which keeps 0.001 Å."""


@pytest.fixture(scope="module")
def structure():
    return load_structure(villin()[0])


@pytest.fixture(scope="module")
def points(structure):
    generator = torch.Generator().manual_seed(5)
    chosen = torch.randint(len(structure), (1000,), generator=generator)
    noise = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    return structure.positions[chosen] + 2.5 * noise


def moved(structure, matrix, shift):
    return replace(structure, positions=structure.positions @ matrix.T + shift)


def fields(trained, structure, points, *, time_ps=50.0):
    """Return the typical field and, where there is one, the first sample's."""
    posed = trained.posed(structure, surface_of(structure, 1.4), 3)
    known = posed.known(points)
    chosen = (None, 0) if trained.distributional else (None,)
    return torch.stack([posed.values(known, time_ps, sample) for sample in chosen])


@EVERY_POSE
@pytest.mark.parametrize("config", [LOCAL, CONTRACTION], ids=["local", "contraction"])
def test_the_field_and_its_samples_turn_with_the_protein(structure, points, config, matrix, shift):
    trained = bound(stirred(config))
    before = fields(trained, structure, points)
    still = fields(trained, structure, points, time_ps=0.0)
    after = fields(trained, moved(structure, matrix, shift), points @ matrix.T + shift)
    assert (before - still).abs().mean() > 0.05  # there is something that could differ
    assert (after - before).abs().max() < TOLERANCE


@pytest.mark.parametrize("router", BACKBONES)
def test_behind_a_point_network_the_field_still_turns_with_the_protein(structure, points, router):
    # The network itself does not: it is shown the protein along its principal axes.
    trained = bound(stirred(replace(LOCAL, router=router, width=0.1)))
    matrix, shift = POSES["all of it"]
    after = fields(trained, moved(structure, matrix, shift), points @ matrix.T + shift)
    assert (after - fields(trained, structure, points)).abs().max() < TOLERANCE


@pytest.mark.parametrize("config", [LOCAL, CONTRACTION], ids=["local", "contraction"])
def test_a_turned_pdb_file_gives_the_turned_field(structure, points, config):
    trained = bound(stirred(config))
    turned = moved(structure, ROTATION, SHIFT)
    rounded = replace(turned, positions=(turned.positions * 1e3).round() / 1e3)
    after = fields(trained, rounded, points @ ROTATION.T + SHIFT)
    assert (after - fields(trained, structure, points)).abs().max() < ROUNDED


def test_the_order_of_the_chain_does_not_enter_the_surface_twice(structure, points):
    # The same atoms in another order within their residues are the same protein.
    order = torch.randperm(len(structure), generator=torch.Generator().manual_seed(2)).numpy()
    order = order[structure.residue_index[order].argsort(kind="stable")]
    trained = bound(stirred(LOCAL))
    after = fields(trained, structure.select(order), points)
    assert (after - fields(trained, structure, points)).abs().max() < 1e-3


def paper_field(trained, structure, points):
    """Return the field of paper experts with the latent code 0, which a fit would only add to."""
    posed = trained.posed(structure, surface_of(structure, 1.4), 0)
    assert isinstance(posed, FirstFrameField)
    cloud = router_cloud(posed.first.structure, PAPER.cloud).to(dtype=torch.float32)
    zero, scale = torch.zeros(1, PAPER.latent), torch.tensor([posed.first.scale])
    posed.__dict__["encoding"] = trained.model.encode(cloud, scale, latent=zero)
    return posed.values(posed.known(points), 50.0, None)


def test_the_published_experts_do_not_turn_with_the_protein(structure, points):
    trained = bound(fresh(PAPER))
    before = paper_field(trained, structure, points)

    def change(matrix, shift):
        after = paper_field(trained, moved(structure, matrix, shift), points @ matrix.T + shift)
        return float((after - before).abs().mean() / before.std())

    assert change(torch.eye(3).double(), SHIFT) < 1e-4
    # measured 1.3 turned and 1.0 mirrored here, 0.78 and 0.37 with the sizes of the paper
    assert change(ROTATION, SHIFT) > 0.01
    assert change(MIRROR, SHIFT) > 0.01
