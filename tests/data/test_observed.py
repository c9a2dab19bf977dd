from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import argon, water_positions, waters

from undula.data.observed import last_frames, nearest_images, observed, spaced, span, tail
from undula.errors import InputError, UsageError
from undula.geometry.periodic import wrapped
from undula.io.atom_export import write_pdb, write_xtc
from undula.io.structures import load_structure
from undula.types import Trajectory

EDGE = 12.0
BOX = EDGE * torch.eye(3)
FRAMES, STEP = 30, 0.1


def drifting(system, start):
    """Let every molecule fly through the box, about two thirds of it in all."""
    generator = torch.Generator().manual_seed(5)
    speed = torch.randn(system.molecule_count, 3, generator=generator, dtype=torch.float64)
    time = STEP * torch.arange(FRAMES, dtype=torch.float64)[:, None, None]
    return start + 2.5 * speed[system.molecules] * time


def trajectory(system, positions, times=None):
    boxes = BOX.expand(len(positions), 3, 3)
    return Trajectory(
        structure=replace(system.structure, positions=positions[0].float()),
        positions=wrapped(positions.float(), boxes),
        times_ps=STEP * torch.arange(len(positions)) if times is None else times,
        box=boxes,
        velocities=torch.ones_like(positions.float()),
    )


@pytest.fixture(scope="module")
def flying():
    start = water_positions(4, torch.Generator().manual_seed(1))
    return drifting(waters(4), start)


def test_follows_whole_molecules_through_the_walls(flying):
    found = observed(trajectory(waters(4), flying))
    assert found.system.molecule_count == 4
    way = found.positions - found.positions[-1]
    torch.testing.assert_close(way.double(), flying - flying[-1], rtol=0, atol=1e-4)
    assert found.frame_ps == pytest.approx(STEP)
    assert found.now_ps == pytest.approx(STEP * (FRAMES - 1))


def test_molecules_lie_now_where_the_file_has_their_first_atoms(flying):
    given = trajectory(waters(4), flying)
    found = observed(given)
    first = torch.arange(0, 12, 3)
    torch.testing.assert_close(found.positions[-1][first], given.positions[-1][first])


def test_keeps_every_third_frame_counted_from_the_last_and_says_so(flying):
    found = observed(trajectory(waters(4), flying))
    few = spaced(found, 3 * STEP)
    assert torch.equal(few.positions, found.positions[2::3])
    assert torch.equal(few.positions[-1], found.positions[-1])
    assert len(few.velocities) == len(few) == 10
    assert few.frame_ps == pytest.approx(0.3)
    assert [(one.code, one.count) for one in few.notices[-1:]] == [("frames-left-out", 20)]
    assert spaced(found, STEP).notices == found.notices


@pytest.mark.parametrize(("wanted", "why"), [(0.05, "farther apart"), (0.25, "not a whole factor")])
def test_offers_nothing_where_frames_do_not_fit(flying, wanted, why):
    with pytest.raises(InputError, match=why):
        spaced(observed(trajectory(waters(4), flying)), wanted)


def test_uneven_frames_are_refused(flying):
    times = STEP * torch.arange(FRAMES)
    times[-1] += 0.05
    with pytest.raises(InputError, match="not evenly spaced"):
        observed(trajectory(waters(4), flying, times))


def test_reads_no_more_of_a_file_than_is_observed(tmp_path):
    system = argon(12)
    positions = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) * EDGE
    moving = drifting(system, positions.double())
    write_pdb(tmp_path / "argon.pdb", system, moving[:1], box=BOX)
    write_xtc(tmp_path / "run.xtc", moving, [STEP * k for k in range(FRAMES)], BOX)
    structure = load_structure(
        tmp_path / "argon.pdb", select="all", hydrogens="keep", heterogens="keep"
    )
    found = last_frames(structure, tmp_path / "run.xtc", 4 * STEP)
    assert len(found) == 5
    assert float(found.times_ps[-1]) == pytest.approx(STEP * (FRAMES - 1), abs=1e-5)
    assert len(last_frames(structure, tmp_path / "run.xtc", 1000.0)) == FRAMES
    assert len(last_frames(structure, tmp_path / "run.xtc", None)) == FRAMES


def test_the_tail_spans_the_time_asked_for(flying):
    found = observed(trajectory(waters(4), flying))
    assert len(tail(found, 0.5)) == 6
    assert torch.equal(tail(found, 0.5).positions, found.positions[-6:])
    assert len(tail(found, None)) == len(tail(found, 99.0)) == FRAMES


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"last": 3, "last_ps": 2.0}, "not by both"),
        ({"last": 0, "last_ps": None}, "at least 1 frame"),
        ({"last": None, "last_ps": -1.0}, "positive time"),
    ],
)
def test_a_window_is_asked_for_in_one_way(given, why):
    with pytest.raises(UsageError, match=why):
        span(frame_ps=0.1, **given)
    assert span(last=5, last_ps=None, frame_ps=0.5) == 2.0


def test_the_future_is_unwrapped_from_where_the_window_ended(flying):
    system, half = waters(4), FRAMES // 2
    boxes = BOX.double().expand(FRAMES - half, 3, 3)
    later = wrapped(flying[half:], boxes)
    found = nearest_images(later, boxes, system, flying[half - 1])
    torch.testing.assert_close(found, flying[half:], rtol=0, atol=1e-6)
