import pytest
import torch
import trimesh

from undula.types import Mesh


@pytest.fixture
def sphere() -> Mesh:
    """A sphere of radius 8 Å off the origin, its ``displacement`` rising from 0 to 4 along x."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=8.0)
    vertices = torch.tensor(ball.vertices, dtype=torch.float32) + torch.tensor([3.0, -20.0, 5.0])
    rising = (vertices[:, 0] - vertices[:, 0].min()) / 4
    return Mesh(
        vertices=vertices,
        faces=torch.tensor(ball.faces, dtype=torch.long),
        scalars={"displacement": rising},
    )


@pytest.fixture
def nothing() -> Mesh:
    return Mesh(vertices=torch.zeros(0, 3), faces=torch.zeros(0, 3, dtype=torch.long))
