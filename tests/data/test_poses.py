from dataclasses import replace

import torch

from undula.data.poses import aligned, centred, mean_structure
from undula.data.velocities import differences
from undula.geometry.frames import centre, random_rotation, superpose
from undula.io.recordings import RecordedFrames

MASSES = torch.tensor([12.0, 1.0, 16.0, 14.0, 1.0], dtype=torch.float64)


def tumbling(frames=200, frame_ps=0.002, seed=0):
    """Five atoms that tremble while their molecule tumbles and flies: positions, velocities."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randn(5, 3, generator=generator, dtype=torch.float64) * 1.5
    size = torch.randn(5, 3, generator=generator, dtype=torch.float64) * 0.2
    axis = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), axis.expand(3, 3))

    def positions(time):
        inner = rest + size * torch.sin(7 * time)
        return (
            inner @ torch.linalg.matrix_exp(3 * time * cross).mT + torch.tensor([5.0, 1, 0]) * time
        )

    times = torch.arange(frames, dtype=torch.float64) * frame_ps
    pairs = [torch.autograd.functional.jvp(positions, t, torch.ones_like(t)) for t in times]
    return torch.stack([x for x, _ in pairs]), torch.stack([v for _, v in pairs])


def test_velocities_of_aligned_frames_are_their_rate_of_change():
    positions, velocities = tumbling()
    frames = RecordedFrames(positions=positions, velocities=velocities, frame_ps=0.002)
    reference = mean_structure([positions], MASSES)
    moved = aligned(frames, reference, MASSES)
    found = differences(moved.positions, 0.002, moved.velocities)
    assert found.error < 1e-6
    assert found.by == "velocities"
    torque = torch.linalg.cross(
        MASSES[:, None] * moved.velocities, reference.expand_as(moved.velocities)
    ).sum(dim=1)
    assert torque.abs().max() < 1e-10
    assert centre(moved.velocities, MASSES).abs().max() < 1e-12


def test_aligned_frames_do_not_change_when_each_frame_is_turned_and_shifted():
    positions, velocities = tumbling(frames=20)
    frames = RecordedFrames(positions=positions, velocities=velocities, frame_ps=0.002)
    reference = mean_structure([positions], MASSES)
    turn = random_rotation(torch.Generator().manual_seed(3))
    turned = replace(
        frames,
        positions=positions @ turn.mT + torch.tensor([1.0, 2.0, 3.0]),
        velocities=velocities @ turn.mT + torch.tensor([4.0, 5.0, 6.0]),
    )
    expected, found = (aligned(some, reference, MASSES) for some in (frames, turned))
    torch.testing.assert_close(found.positions, expected.positions)
    torch.testing.assert_close(found.velocities, expected.velocities)


def test_known_velocities_of_the_first_frames_are_turned_as_those_of_all():
    positions, velocities = tumbling(frames=20)
    frames = RecordedFrames(positions=positions, velocities=velocities, frame_ps=0.002)
    few = replace(frames, velocities=velocities[:7])
    expected, found = (aligned(some, positions[0], MASSES) for some in (frames, few))
    torch.testing.assert_close(found.velocities, expected.velocities[:7])


def test_the_mean_structure_is_the_mean_of_what_is_superposed_on_it():
    positions, _ = tumbling(frames=60)
    mean = mean_structure([positions[:40], positions[40:]], MASSES)
    frames = RecordedFrames(positions=positions, frame_ps=0.002)
    found = aligned(frames, mean, MASSES).positions.mean(dim=0)
    torch.testing.assert_close(found, mean, atol=1e-5, rtol=0)
    assert centre(mean, MASSES).abs().max() < 1e-6


def test_a_rigid_molecule_is_its_own_mean():
    rest = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    turns = [random_rotation(torch.Generator().manual_seed(k)) for k in range(8)]
    moving = torch.stack([rest @ turn.mT + k for k, turn in enumerate(turns)])
    mean = mean_structure([moving], MASSES)
    torch.testing.assert_close(superpose(mean[None], rest)[0], rest)


def test_the_centre_of_mass_stays_when_its_motion_is_removed():
    positions, velocities = tumbling(frames=20)
    frames = RecordedFrames(positions=positions, velocities=velocities, frame_ps=0.002)
    found = centred(frames, MASSES)
    middle = centre(found.positions, MASSES)
    torch.testing.assert_close(middle, middle[:1].expand_as(middle))
    torch.testing.assert_close(found.positions[0], positions[0])
    assert centre(found.velocities, MASSES).abs().max() < 1e-12
