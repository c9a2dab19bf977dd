import torch

from undula.surface.backbones.pointmlp import Stage


def entered(stage: Stage, values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Return what a stage's first network is given for groups around the first two points."""
    seen: list[torch.Tensor] = []
    hook = stage.before.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stage(values, torch.tensor([0, 1]), members, torch.zeros(2, dtype=torch.long), 1)
    hook.remove()
    return seen[0]


def test_groups_are_normalised_by_the_deviation_of_the_whole_protein():
    draw = torch.Generator().manual_seed(0)
    stage = Stage(3, 8, draw).double()
    values = torch.randn(5, 3, generator=draw, dtype=torch.float64)
    members = torch.tensor([[0, 2, 3], [1, 3, 4]])
    with torch.no_grad():
        stage.alpha.copy_(torch.tensor([1.0, 2.0, 3.0]))
        stage.beta.copy_(torch.tensor([0.0, 0.1, 0.2]))
    apart = values[members] - values[:2, None]
    sigma = apart.square().mean().sqrt()
    found = entered(stage, values, members)
    torch.testing.assert_close(found[..., :3], stage.alpha * apart / sigma + stage.beta)
    torch.testing.assert_close(found[..., 3:], values[:2, None].expand(2, 3, 3))
    larger = entered(stage, 100 * values, members)
    torch.testing.assert_close(larger[..., :3], found[..., :3])


def test_a_group_of_equal_points_is_not_divided_by_zero():
    stage = Stage(3, 8, torch.Generator().manual_seed(0)).double()
    values = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    members = torch.zeros(2, 4, dtype=torch.long)
    assert not entered(stage, values, members)[..., :3].any()
