from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import ENCODER, LEVELS, chain, window

from undula.errors import UsageError
from undula.motion.levels import AGES, Level, LevelsConfig, Segments, ahead
from undula.motion.surroundings import graph_of
from undula.nn.ode.solve import SolverConfig


def made(number=1, solver=LEVELS.solver) -> Level:
    config = replace(LEVELS, solver=solver)
    return Level(number, config, ENCODER, torch.Generator().manual_seed(1)).double()


def state(rows, atoms=4):
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(rows, atoms, 8, generator=generator, dtype=torch.float64),
        torch.randn(rows, atoms, 3, 8, generator=generator, dtype=torch.float64),
    )


def graph(rows):
    return graph_of(window(chain(4)).positions[:rows], None, ENCODER.cutoff, None)


def test_times_ahead_are_told_apart_from_now_to_the_horizon():
    lags = torch.tensor([0, 1, 2, 10, 100, 1000, 8000], dtype=torch.float64)
    told = ahead(lags, 8000)
    assert told.shape == (7, AGES)
    assert float(told[0, 0]) == 1
    assert float(told[-1, -1]) == pytest.approx(1)
    assert float(torch.cdist(told, told).fill_diagonal_(9).min()) > 0.1
    step = ahead(lags + 1e-6, 8000) - told
    assert float(step.abs().max()) < 1e-5


def test_a_solved_row_is_as_each_alone():
    level, (s, v) = made(0), state(3)
    together = level.solved(s, v, graph(3)).last
    for row in range(3):
        one = graph_of(window(chain(4)).positions[row : row + 1], None, ENCODER.cutoff, None)
        alone = level.solved(s[row : row + 1], v[row : row + 1], one).last
        for found, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(found[0], expected[row], rtol=0, atol=1e-12)


def test_the_change_depends_on_the_part_of_the_segment_that_has_passed():
    level, (s, v) = made(0), state(1)
    fine = level.solved(s, v, graph(1))
    with torch.no_grad():
        level.clock.weight.zero_()
    assert not torch.equal(level.solved(s, v, graph(1)).last[0], fine.last[0])


def test_more_steps_change_the_end_by_the_fourth_power_of_their_size():
    ends = [
        made(0, SolverConfig(steps=steps)).solved(*state(1), graph(1)).last[0].detach()
        for steps in (4, 8, 64)
    ]
    errors = [float((end - ends[2]).norm()) for end in ends[:2]]
    assert errors[0] / errors[1] > 11


def test_finer_levels_start_where_coarser_ones_are_and_learn_the_rest():
    level = made(1)
    states = [tuple(one[None] for one in state(2))]
    s, v = level.started(states, torch.tensor([0.0, 8.0], dtype=torch.float64)[:1])
    assert s.shape == states[0][0].shape
    assert v.shape == states[0][1].shape
    with torch.no_grad():
        for weight in (level.start.leave.weight, level.start.mixed.weight):
            weight.zero_()
    same = level.started(states, torch.zeros(1, dtype=torch.float64))
    assert torch.equal(same[0], states[0][0])
    assert torch.equal(same[1], states[0][1])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_every_time_is_read_from_its_own_segment_and_window(chunk):
    level, windows = made(0), 2
    numbers = torch.tensor([0, 3, 4, 7, 9])
    s, v = state(2 * len(numbers))
    frames = window(chain(4)).positions[:10]
    solutions = []
    for first in range(0, len(numbers), chunk):
        some = slice(first * windows, (first + chunk) * windows)
        solutions.append(
            level.solved(s[some], v[some], graph_of(frames[some], None, ENCODER.cutoff, None))
        )
    segments = Segments(numbers=numbers, solutions=tuple(solutions), chunk=chunk, windows=windows)
    assert segments.evaluations == len(solutions) * solutions[0].evaluations
    asked = torch.tensor([9, 0, 4, 4, 3])
    tau = torch.tensor([0.0, 1.0, 0.25, 0.5, 0.0], dtype=torch.float64)
    scalars, vectors = segments.at(asked, tau)
    assert scalars.shape == (5, 2, 4, 8)
    assert vectors.shape == (5, 2, 4, 3, 8)
    for place in (0, 4):
        row = int((numbers == asked[place]).nonzero()) * windows
        torch.testing.assert_close(scalars[place], s[row : row + 2], rtol=0, atol=1e-12)
        torch.testing.assert_close(vectors[place], v[row : row + 2], rtol=0, atol=1e-12)
    alone = segments.at(asked[2:3], tau[2:3])
    torch.testing.assert_close(scalars[2:3], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", [{"layers": 0}, {"segment_chunk": 0}], ids=str)
def test_refuses_sizes_that_mean_nothing(changes):
    with pytest.raises(UsageError, match=rf"levels\.{next(iter(changes))}"):
        LevelsConfig(**changes)
