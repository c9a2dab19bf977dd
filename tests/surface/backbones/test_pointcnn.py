import torch
from torch.nn import functional

from undula.surface.backbones.pointcnn import XConv


def test_the_convolution_equals_the_algorithm_point_by_point():
    draw = torch.Generator().manual_seed(0)
    layer = XConv(4, 5, 2, 16, draw).double()
    apart = torch.randn(3, 4, 3, generator=draw, dtype=torch.float64)
    values = torch.randn(9, 5, generator=draw, dtype=torch.float64)
    members = torch.randint(9, (3, 4), generator=draw)
    found = layer(apart, values, members)

    def per_column(matrix: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Multiply each column by a matrix of its own; one row per column."""
        return torch.stack([matrix[:, c] @ kernel[:, c] for c in range(matrix.shape[1])])

    for p in range(3):
        lifted = torch.cat((layer.lifting(apart[p]), values[members[p]]), dim=1)
        x = layer.start(apart[p].flatten()[None])[0].reshape(4, 4)
        x = functional.elu(per_column(x, layer.middle).flatten())
        x = per_column(layer.middle_norm(x).reshape(4, 4), layer.end)
        gathered = per_column(x @ lifted, layer.depthwise).flatten()
        expected = functional.elu(layer.norm(layer.across(gathered)))
        torch.testing.assert_close(found[p], expected)


def test_a_separable_convolution_makes_enough_channels_for_its_outputs():
    layer = XConv(8, 6, 2, 48, torch.Generator())
    assert layer.depthwise.shape == (8, 8, 6)
    assert layer.across.in_features == 48
