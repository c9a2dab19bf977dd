import torch
import trimesh

from undula.types import Mesh
from undula.viz.shading import openness


def dented() -> Mesh:
    """A ball of radius 12 Å with a pit of 5 Å at +x and a knob of 5 Å at -x."""
    ball = trimesh.creation.icosphere(subdivisions=4, radius=1.0)
    directions = torch.tensor(ball.vertices, dtype=torch.float32)
    away = torch.exp(-((torch.acos(directions[:, 0].clamp(-1, 1)) / 0.35) ** 2))
    toward = torch.exp(-((torch.acos(-directions[:, 0].clamp(-1, 1)) / 0.35) ** 2))
    return Mesh(
        vertices=directions * (12 - 5 * away + 5 * toward)[:, None],
        faces=torch.tensor(ball.faces, dtype=torch.long),
    )


def test_is_the_same_all_over_a_sphere(sphere):
    light = openness(sphere)
    assert light.std() < 0.02
    assert light.min() > 0.6


def test_is_lower_in_a_hollow_than_on_a_knob():
    mesh = dented()
    light = openness(mesh)
    pit = mesh.vertices.norm(dim=1) < 8
    knob = mesh.vertices.norm(dim=1) > 15
    assert light[pit].max() < 0.3
    assert light[knob].min() > 0.9


def test_hardly_changes_when_the_mesh_is_turned_and_shifted():
    mesh = dented()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    turn *= torch.linalg.det(turn)
    moved = Mesh(vertices=mesh.vertices @ turn.T + 1000, faces=mesh.faces)
    assert (openness(moved) - openness(mesh)).abs().max() < 0.1


def test_is_a_half_without_a_surface(nothing):
    assert openness(nothing).shape == (0,)
    alone = Mesh(vertices=torch.zeros(2, 3), faces=torch.zeros(0, 3, dtype=torch.long))
    assert openness(alone).tolist() == [0.5, 0.5]


def test_is_finite_for_a_very_large_mesh(sphere):
    huge = Mesh(vertices=sphere.vertices * 500, faces=sphere.faces)
    assert torch.isfinite(openness(huge)).all()
