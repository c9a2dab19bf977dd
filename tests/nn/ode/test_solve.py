import math
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from undula.errors import MachineError, UsageError
from undula.nn.ode.solve import Solution, SolverConfig, solve

EXACT = {"rtol": 0, "atol": 1e-13}


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def spring(_: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    position, velocity = state
    return velocity, -(3.0**2) * position


def swinging(steps: int, **changes) -> Solution:
    return solve(spring, (column(1.0), column(0.0)), SolverConfig(steps=steps, **changes))


def grid(count: int = 101) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


def worst(solution: Solution, times: Tensor) -> float:
    position, _ = solution.at(times)
    return float((position[:, 0, 0] - torch.cos(3 * times)).abs().max())


class Count:
    """A right-hand side that counts its calls."""

    def __init__(self, flow) -> None:
        self.flow, self.calls = flow, 0

    def __call__(self, time, state):
        self.calls += 1
        return self.flow(time, state)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_polynomials_up_to_degree_three_are_exact_at_any_time(steps):
    def flow(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.ones_like(state[0]) * (2 - 6 * time + 12 * time**2),)

    times = grid()
    (found,) = solve(flow, (column(1.0, -1.0),), SolverConfig(steps=steps)).at(times)
    expected = 2 * times - 3 * times**2 + 4 * times**3
    torch.testing.assert_close(found[:, :, 0], expected[:, None] + column(1.0, -1.0).T, **EXACT)


@pytest.mark.parametrize("times", [torch.ones(1, dtype=torch.float64), grid()], ids=["end", "any"])
def test_the_order_is_four_at_the_end_and_between_the_knots(times):
    errors = [worst(swinging(steps), times) for steps in (8, 16, 32, 64)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(3.8 < order < 4.7 for order in orders), orders


def test_the_last_piece_is_of_the_same_order_without_an_evaluation_at_its_end():
    errors = []
    for steps in (8, 16, 32, 64):
        errors.append(worst(swinging(steps), 1 - grid() / steps))
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert all(order > 3.7 for order in orders), orders


def test_a_linear_equation_follows_the_exponential_of_its_matrix():
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=draw)
    start = torch.randn(5, 4, dtype=torch.float64, generator=draw)
    solution = solve(lambda _, z: (z[0] @ matrix.T,), (start,), SolverConfig(steps=40))
    times = torch.tensor([0.0, 0.31, 1.0], dtype=torch.float64)
    expected = start @ torch.linalg.matrix_exp(times[:, None, None] * matrix).mT
    torch.testing.assert_close(solution.at(times)[0], expected, rtol=0, atol=1e-5)


def test_evaluations_are_four_a_step_whatever_is_asked_for():
    flow = Count(spring)
    solution = solve(flow, (column(1.0), column(0.0)), SolverConfig(steps=20))
    solution.at(grid(8000))
    assert flow.calls == solution.evaluations == 80


def test_the_curve_goes_through_the_knots():
    solution = swinging(10)
    for states, found in zip(solution.states, solution.at(grid(11)), strict=True):
        torch.testing.assert_close(found, states, **EXACT)
    torch.testing.assert_close(solution.last, tuple(one[-1] for one in solution.at(grid(11))))


def test_the_curve_and_its_slope_are_continuous():
    solution, step = swinging(4), 1e-7
    around = torch.tensor([0.5 - 2 * step, 0.5 - step, 0.5, 0.5 + step], dtype=torch.float64)
    position = solution.at(around)[0][:, 0, 0]
    before, _, after = (position.diff() / step).tolist()
    assert before == pytest.approx(after, abs=1e-5)


def test_unsorted_and_repeated_times_are_those_of_a_sorted_list():
    solution, times = swinging(7), torch.tensor([0.9, 0.1, 0.5, 0.1], dtype=torch.float64)
    (order,) = (times.argsort(stable=True),)
    for found, ordered in zip(solution.at(times), solution.at(times[order]), strict=True):
        torch.testing.assert_close(found[order], ordered, rtol=0, atol=0)


def test_one_time_gives_the_same_as_a_grid_that_contains_it():
    solution, times = swinging(7), grid(13)
    whole = solution.at(times)
    for number in (0, 5, 12):
        alone = solution.at(times[number : number + 1])
        torch.testing.assert_close([one[0] for one in alone], [one[number] for one in whole])


def test_no_times_give_no_states():
    nothing = torch.zeros(0, dtype=torch.float64)
    assert [one.shape for one in swinging(3).at(nothing)] == [(0, 1, 1)] * 2
    assert [one.shape for one in swinging(3).of(nothing.long(), nothing)] == [(0, 1)] * 2


def many() -> Solution:
    draw = torch.Generator().manual_seed(1)
    scalars = torch.randn(6, 4, dtype=torch.float64, generator=draw)
    vectors = torch.randn(6, 3, 4, dtype=torch.float64, generator=draw)

    def flow(time: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        s, v = state
        return torch.sin(3 * s + time), -v * s[:, None]

    return solve(flow, (scalars, vectors), SolverConfig(steps=6))


def test_rows_solved_together_are_as_each_alone():
    alone = solve(spring, (column(2.0), column(0.5)), SolverConfig(steps=5)).at(grid(9))
    start = (column(1.0, 2.0, 3.0), column(0.0, 0.5, 1.0))
    together = solve(spring, start, SolverConfig(steps=5)).at(grid(9))
    torch.testing.assert_close([one[:, 1:2] for one in together], list(alone), **EXACT)


def test_each_row_can_have_times_of_its_own():
    solution, rows = many(), torch.tensor([5, 0, 3, 0])
    times = torch.tensor([0.9, 0.1, 1.0, 0.55], dtype=torch.float64)
    found = solution.of(rows, times)
    assert [one.shape for one in found] == [(4, 4), (4, 3, 4)]
    for number, row in enumerate(rows.tolist()):
        alone = solution.at(times[number : number + 1])
        torch.testing.assert_close([one[number] for one in found], [one[0, row] for one in alone])


def by_hand(start: Tensor, weight: Tensor, steps: int) -> Tensor:
    """Classical Runge–Kutta, written out for one equation."""
    state, h = start, 1 / steps
    for _ in range(steps):
        k1 = torch.tanh(state @ weight)
        k2 = torch.tanh((state + h / 2 * k1) @ weight)
        k3 = torch.tanh((state + h / 2 * k2) @ weight)
        k4 = torch.tanh((state + h * k3) @ weight)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


def drawn() -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = ((5, 3), (3, 3))
    return [
        torch.randn(one, dtype=torch.float64, generator=draw).requires_grad_() for one in shapes
    ]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_derivatives_are_those_of_the_steps_written_out(checkpoint):
    start, weight = drawn()
    config = SolverConfig(steps=4, checkpoint=checkpoint)
    (end,) = solve(lambda _, z: (torch.tanh(z[0] @ weight),), (start,), config).last
    expected = by_hand(start, weight, 4)
    torch.testing.assert_close(end, expected, **EXACT)
    found, reference = (
        torch.autograd.grad(one.square().sum(), [start, weight]) for one in (end, expected)
    )
    torch.testing.assert_close(found, reference, **EXACT)


def test_derivatives_of_the_curve_are_those_of_finite_differences():
    start, weight = drawn()
    times = torch.tensor([0.83, 0.1, 0.1, 0.4], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([4, 0, 0, 2])

    def curve(start: Tensor, weight: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        config = SolverConfig(steps=3)
        solution = solve(lambda _, z: (torch.tanh(z[0] @ weight),), (start,), config)
        return solution.at(times)[0], solution.of(rows, times)[0]

    assert torch.autograd.gradcheck(curve, [start, weight, times])


def test_checkpoints_change_no_number_and_keep_the_knots_alone():
    kept: list[int] = []
    numbers = []
    for checkpoint in (False, True):
        start, weight = drawn()
        sizes: list[int] = []
        flow = Count(lambda _, z, weight=weight: (torch.tanh(z[0] @ weight),))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda one, sizes=sizes: sizes.append(one.numel()) or one, lambda one: one
        ):
            solution = solve(flow, (start,), SolverConfig(steps=10, checkpoint=checkpoint))
        loss = solution.at(grid(7))[0].square().sum()
        numbers.append([loss, *torch.autograd.grad(loss, [start, weight])])
        kept.append(sum(sizes))
        assert flow.calls == (80 if checkpoint else 40)
        assert solution.evaluations == 40
    torch.testing.assert_close(*numbers, rtol=0, atol=0)
    assert kept[1] < kept[0] / 4


def test_single_precision_stays_single():
    start = (torch.ones(2, 1), torch.zeros(2, 1))
    solution = solve(spring, start, SolverConfig(steps=20))
    found = solution.at(grid())
    assert {one.dtype for one in found} == {torch.float32}
    assert float((found[0][:, 0, 0] - torch.cos(3 * grid())).abs().max()) < 1e-4


def test_dopri5_agrees_with_many_steps():
    pytest.importorskip("torchdiffeq")
    flow = Count(spring)
    config = SolverConfig(method="dopri5", steps=100, tolerance=1e-9)
    solution = solve(flow, (column(1.0), column(0.0)), config)
    assert worst(solution, grid(77)) < 1e-7
    assert solution.evaluations == flow.calls > 100


def test_dopri5_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(MachineError, match="pip install"):
        swinging(2, method="dopri5")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, r"solver\.steps"),
        ({"tolerance": 0.0}, r"solver\.tolerance"),
        ({"tolerance": 1.0}, r"solver\.tolerance"),
        ({"method": "dopri5", "checkpoint": True}, r"solver\.checkpoint"),
    ],
)
def test_refuses_configurations_that_solve_nothing(changes, words):
    with pytest.raises(UsageError, match=words):
        SolverConfig(**changes)


def test_refuses_states_whose_rows_do_not_belong_together():
    for start in ((), (column(1.0), column(1.0, 2.0))):
        with pytest.raises(UsageError, match="equal numbers of rows"):
            solve(spring, start, SolverConfig())
