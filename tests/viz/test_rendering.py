import math

import numpy as np
import pytest
import torch

from undula.errors import InputError
from undula.types import Mesh
from undula.viz.colours import colour_map, oklab
from undula.viz.rendering import View, common_view, render


def straight(mesh: Mesh) -> View:
    centre = (mesh.vertices.min(dim=0).values + mesh.vertices.max(dim=0).values) / 2
    return View(axes=torch.eye(3), centre=centre, half=torch.full((3,), 8.0))


def lopsided(mesh: Mesh) -> Mesh:
    """Stretched differently along each axis, heavier on one side of each."""
    x = mesh.vertices - mesh.vertices.mean(dim=0)
    return Mesh(
        vertices=(x + 0.05 * x**2) * torch.tensor([2.0, 1.3, 0.8]),
        faces=mesh.faces,
        scalars=mesh.scalars,
    )


def rotation(seed: int) -> torch.Tensor:
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    return turn * torch.linalg.det(turn).sign()


def test_a_sphere_covers_a_disc(sphere):
    picture = render(sphere, straight(sphere), width=200, height=200)
    expected = math.pi * (100 / 1.05) ** 2
    assert picture[..., 3].sum() == pytest.approx(expected, rel=0.01)


def test_scale_follows_the_shorter_side(sphere):
    picture = render(sphere, straight(sphere), width=300, height=100)
    assert picture.shape == (100, 300, 4)
    assert picture[..., 3].sum() == pytest.approx(math.pi * (50 / 1.05) ** 2, rel=0.02)


def test_has_no_holes_inside(sphere):
    opacity = render(sphere, straight(sphere), width=120, height=120)[..., 3]
    y, x = np.mgrid[:120, :120] - 59.5
    assert (opacity[x**2 + y**2 < 50**2] == 1).all()
    assert (opacity[x**2 + y**2 > 60**2] == 0).all()


def test_colour_rises_to_the_right_as_the_number_does(sphere):
    picture = render(sphere, straight(sphere), scalar="displacement", top=4.0)
    shown = oklab(picture[150, [30, 150, 270], :3])
    wanted = oklab(colour_map()[[26, 128, 230]])
    hue = np.arctan2(shown[1:, 2], shown[1:, 1]) - np.arctan2(wanted[1:, 2], wanted[1:, 1])
    assert np.abs(hue).max() < 0.25
    assert (np.diff(shown[:, 0]) < 0).all()


def test_light_comes_from_above_on_the_left(sphere):
    picture = render(sphere, straight(sphere))[..., :3].sum(axis=-1)
    assert picture[80, 80] > picture[220, 220] + 0.2


def test_the_nearer_of_two_surfaces_is_seen(sphere):
    near = sphere.vertices * 0.5 + torch.tensor([1.5, -10.0, 30.0])
    zeros, ones = torch.zeros(len(near)), torch.ones(len(near))
    for order in (1, -1):
        parts = [(sphere.vertices, zeros), (near, ones)][::order]
        both = Mesh(
            vertices=torch.cat([points for points, _ in parts]),
            faces=torch.cat([sphere.faces, sphere.faces + len(near)]),
            scalars={"part": torch.cat([values for _, values in parts])},
        )
        picture = render(both, straight(sphere), scalar="part")
        assert oklab(picture[150, 150, :3])[1] > 0.1
        assert abs(oklab(picture[150, 40, :3])[1]) < 0.03


def test_what_faces_away_is_not_drawn(sphere):
    inverted = Mesh(vertices=sphere.vertices, faces=sphere.faces.flip(1)[:1])
    upright = Mesh(vertices=sphere.vertices, faces=sphere.faces[:1])
    pair = [render(mesh, straight(sphere))[..., 3].sum() for mesh in (inverted, upright)]
    assert min(pair) == 0 < max(pair)


def test_triangles_outside_the_picture_are_cut(sphere):
    view = straight(sphere)
    zoomed = View(axes=view.axes, centre=view.centre, half=torch.full((3,), 1.0))
    assert (render(sphere, zoomed, width=60, height=60)[..., 3] == 1).all()


def test_an_empty_mesh_gives_a_transparent_picture(nothing):
    picture = render(nothing, common_view([nothing]), width=20, height=10)
    assert picture.shape == (10, 20, 4)
    assert not picture.any()


def test_refuses_a_number_that_is_not_there(sphere):
    with pytest.raises(InputError, match="no scalar 'spread'"):
        render(sphere, straight(sphere), scalar="spread")


def test_the_common_view_is_right_handed_and_broad_side_on(sphere):
    view = common_view([lopsided(sphere)])
    torch.testing.assert_close(view.axes @ view.axes.T, torch.eye(3))
    assert torch.linalg.det(view.axes) == pytest.approx(1.0, abs=1e-5)
    assert view.half[0] > view.half[1] > view.half[2]


def test_the_common_view_holds_every_mesh(sphere, nothing):
    meshes = [sphere, lopsided(sphere), nothing]
    view = common_view(meshes)
    for mesh in meshes:
        seen = ((mesh.vertices - view.centre) @ view.axes.T).abs()
        assert (seen <= view.half + 1e-3).all()


def test_a_turned_molecule_gives_the_same_picture(sphere):
    mesh = lopsided(sphere)
    turned = Mesh(vertices=mesh.vertices @ rotation(1).T + 70, faces=mesh.faces)
    first, second = (render(m, common_view([m]), width=80, height=80) for m in (mesh, turned))
    assert np.abs(first - second).mean() < 0.01


def test_the_common_view_of_nothing_is_a_small_box(nothing):
    assert common_view([nothing]).half.tolist() == [0.5, 0.5, 0.5]
