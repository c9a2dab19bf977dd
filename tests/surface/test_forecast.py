import math
from dataclasses import replace

import pytest
import torch

from undula.errors import InputError, MachineError, UsageError
from undula.geometry.frames import random_rotation
from undula.surface.estimates import SurfaceSize, SurfaceWork, estimate
from undula.surface.forecast import MovingSurface, forecast
from undula.surface.trained import TrainedSurface


@pytest.fixture
def moving(dataset, trained):
    return forecast(dataset.structure, [10.0, 40.0], trained, spacing=1.0)


@pytest.fixture
def points(dataset, generator):
    around = dataset.structure.positions
    chosen = torch.randint(len(around), (200,), generator=generator)
    return around[chosen] + 3 * torch.randn(200, 3, generator=generator, dtype=torch.float64)


def test_the_model_moved_away_from_the_first_frame(moving, points):
    copied = moving.first_surface.signed_distance(points)
    assert (moving.sdf(points, 40.0) - copied).abs().mean() > 1e-3


def test_a_turned_structure_gives_the_turned_field(moving, points, generator):
    rotation = random_rotation(generator, torch.float64)
    shift = torch.tensor([5.0, -3.0, 20.0], dtype=torch.float64)
    turned = replace(moving.structure, positions=moving.structure.positions @ rotation.T + shift)
    other = forecast(turned, moving.times_ps, moving.trained)
    difference = other.sdf(points @ rotation.T + shift, 40.0) - moving.sdf(points, 40.0)
    assert difference.abs().max() < 1e-4


def test_the_mesh_lies_on_the_zero_level_of_the_field(moving):
    mesh = moving.mesh(40.0, spacing=0.5)
    values = moving.sdf(mesh.vertices.double(), 40.0)
    assert values.abs().max() < 0.15
    assert values.abs().mean() < 0.02


def test_the_mesh_grows_with_the_level(moving):
    volumes = [moving.level_set(10.0, level=level).mesh.volume for level in (-0.5, 0.0, 0.5)]
    assert volumes[0] < volumes[1] < volumes[2]


def test_an_empty_level_set_is_an_ordinary_result(moving):
    found = moving.level_set(10.0, level=-50.0)
    assert found.is_empty
    assert moving.mesh(10.0, level=-50.0).is_empty


def test_a_level_far_out_is_not_cut_by_the_lattice(moving):
    assert not moving.level_set(10.0, level=12.0, spacing=2.0).touches_border


def test_any_time_can_be_asked_for(moving, points):
    between = moving.sdf(points, 25.0)
    ends = torch.stack([moving.sdf(points, 10.0), moving.sdf(points, 40.0)])
    assert torch.isfinite(between).all()
    assert not torch.equal(between, ends[0])


def test_a_saved_forecast_gives_the_same_field(moving, points, tmp_path):
    moving.save(tmp_path / "result")
    again = MovingSurface.load(tmp_path / "result")
    assert again.times_ps == moving.times_ps
    assert torch.equal(again.sdf(points, 40.0), moving.sdf(points, 40.0))


def test_a_forecast_does_not_depend_on_later_frames(dataset, trained, points):
    one = forecast(dataset.structure, [40.0], trained)
    two = forecast(dataset.structure, [0.0, 40.0, 5000.0], trained)
    assert torch.equal(one.sdf(points, 40.0), two.sdf(points, 40.0))


def test_times_beyond_training_are_noticed(dataset, trained):
    moving = forecast(dataset.structure, [10.0, 1e4], trained)
    assert [notice.code for notice in moving.notices].count("beyond-training") == 1


@pytest.mark.parametrize(
    ("times", "message"), [([], "at least one time"), ([-1.0], "count from the first frame")]
)
def test_refuses_times_that_cannot_be_meant(dataset, trained, times, message):
    with pytest.raises(UsageError, match=message):
        forecast(dataset.structure, times, trained)


def test_another_protein_is_refused(dataset, trained):
    part = dataset.structure.select(dataset.structure.residue_index < 4)
    with pytest.raises(InputError, match="another sequence"):
        forecast(part, [1.0], trained)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        TrainedSurface.load(tmp_path)


def test_the_trivial_rows_come_back_as_they_were(trained, tmp_path):
    trained.save(tmp_path)
    again = TrainedSurface.load(tmp_path)
    assert again.blur == trained.blur
    assert torch.equal(again.averaged[0].values, trained.averaged[0].values)
    assert again.provenance == trained.provenance


def test_a_structure_of_its_own_is_exact_at_first_and_forgotten_later(dataset, trained, points):
    seed = torch.Generator().manual_seed(1)
    jitter = 0.5 * torch.randn(dataset.structure.positions.shape, generator=seed).double()
    jitter[dataset.structure.alpha_carbons] = 0  # so that the pose stays
    own = replace(dataset.structure, positions=dataset.structure.positions + jitter)
    known, other = (forecast(s, [0.0], trained) for s in (dataset.structure, own))
    gaps = [
        float((known.sdf(points, time) - other.sdf(points, time)).abs().mean())
        for time in (0.0, trained.memory_ps[0], 100 * trained.memory_ps[0])
    ]
    assert gaps[0] > 0.1
    assert gaps[1] == pytest.approx(gaps[0] / math.e, rel=0.3)
    assert gaps[2] < 0.15 * gaps[0]


def test_deviations_last_longer_where_frames_resemble_their_neighbours(trained, dataset):
    times = dataset.trajectories[0].times_ps
    assert 0 < trained.memory_ps[0] < 40 * times[-1]


def test_points_that_are_not_kept_give_the_same_mesh(moving):
    other = replace(moving, kept_bytes=0, chunk=100, _known={})
    kept, found = moving.mesh(10.0), other.mesh(10.0)
    torch.testing.assert_close(found.vertices, kept.vertices)
    assert torch.equal(found.faces, kept.faces)


def test_what_does_not_fit_is_refused_at_once_with_the_spacing_that_does(dataset, trained):
    size = SurfaceSize.of(dataset.structure, None)
    fine, coarse = SurfaceWork(spacing=0.1), SurfaceWork(spacing=0.5, kept_bytes=0)
    assert estimate(size, coarse).memory_bytes < estimate(size, fine).memory_bytes
    limit = estimate(size, coarse).memory_bytes + 2**20
    with pytest.raises(MachineError, match=r"allowed; a spacing of 0\.[0-9] Å fits$") as caught:
        forecast(dataset.structure, [10.0], trained, spacing=0.1, memory_limit=limit)
    spacing = float(str(caught.value).split()[-3])
    assert 0.1 < spacing <= 0.5
    with pytest.raises(MachineError, match="undula alone takes"):
        forecast(dataset.structure, [10.0], trained, memory_limit="1MiB")


def test_memory_that_runs_out_halves_the_parts_once(moving, monkeypatch):
    asked = []

    def found(self, *_):
        asked.append((self.chunk, self.kept_bytes))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(MovingSurface, "_level_set", found)
    with pytest.raises(MachineError, match="the memory was not enough") as caught:
        moving.mesh(10.0)
    assert asked == [(moving.chunk, moving.kept_bytes), (moving.chunk // 2, 0)]
    assert "\n" not in str(caught.value)
