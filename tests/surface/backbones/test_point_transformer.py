import torch
from torch.nn import functional

from undula.surface.backbones.point_transformer import AttentionBlock


def test_the_block_equals_the_formula_point_by_point():
    draw = torch.Generator().manual_seed(0)
    block = AttentionBlock(8, draw).double()
    points = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    values = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    members = torch.randint(6, (6, 4), generator=draw)
    found = block(points, values, members)
    entered = block.before(values)
    for i in range(6):
        offset = torch.stack([block.offset(points[i] - points[j]) for j in members[i]])
        compared = torch.stack(
            [block.query(entered[i]) - block.key(entered[j]) for j in members[i]]
        )
        weight = torch.exp(block.weighing(compared + offset))
        sent = torch.stack([block.value(entered[j]) for j in members[i]]) + offset
        y = (weight * sent).sum(dim=0) / weight.sum(dim=0)
        y = block.after_norm(block.after(functional.relu(block.middle_norm(y))))
        torch.testing.assert_close(found[i], functional.relu(values[i] + y))


def test_the_order_of_the_neighbours_changes_nothing():
    draw = torch.Generator().manual_seed(0)
    block = AttentionBlock(8, draw).double()
    points = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    values = torch.randn(6, 8, generator=draw, dtype=torch.float64)
    members = torch.randint(6, (6, 4), generator=draw)
    torch.testing.assert_close(
        block(points, values, members), block(points, values, members.flip(1))
    )
