from dataclasses import replace

import pytest

from undula.data.bundled import villin
from undula.errors import MachineError
from undula.estimates import peak_bytes
from undula.geometry.lattice import Lattice
from undula.io.structures import load_structure
from undula.surface.estimates import (
    KEPT_BYTES,
    MARGIN,
    SurfaceSize,
    SurfaceWork,
    blurred_nodes,
    check_training,
    estimate,
    fitted,
    forecast_bytes,
    training_estimate,
)
from undula.surface.first_frame import FirstFrame, LocalConfig
from undula.surface.mixture_task import MixtureBatchConfig

LOCAL = LocalConfig()


@pytest.fixture(scope="module")
def structure():
    return load_structure(villin()[0])


@pytest.fixture(scope="module")
def size(structure):
    return SurfaceSize.of(structure, LOCAL)


def test_lattices_are_as_large_as_those_that_will_be_made(structure, size):
    first, ends = FirstFrame(structure, LOCAL), structure.positions
    low, high = ends.amin(dim=0) - MARGIN, ends.amax(dim=0) + MARGIN
    assert size.blurred == pytest.approx(first.lattice.nodes, rel=0.1)
    assert size.nodes(1.0, MARGIN) == pytest.approx(Lattice.covering(low, high, 1.0).nodes, rel=0.1)


def test_more_is_never_estimated_to_take_less(size):
    little = SurfaceWork(spacing=1.0, times=1, samples=0)
    for more in ({"spacing": 0.5}, {"times": 5}, {"samples": 8}, {"level": 3.0}):
        assert forecast_bytes(size, replace(little, **more)) >= forecast_bytes(size, little)
        assert estimate(size, replace(little, **more)).seconds >= estimate(size, little).seconds
    large = replace(size, scale=50.0)
    assert forecast_bytes(large, little) > 5 * forecast_bytes(size, little)
    assert blurred_nodes(large)[0] <= 50 * size.blurred


def test_less_is_kept_where_all_does_not_fit(size):
    work = SurfaceWork(spacing=0.3)
    whole, least = (forecast_bytes(size, replace(work, kept_bytes=k)) for k in (KEPT_BYTES, 0))
    assert fitted(size, work, peak_bytes(2 * whole), "it")[0] == work
    cut, expected = fitted(size, work, peak_bytes((whole + least) / 2), "it")
    assert cut == replace(work, kept_bytes=0)
    assert expected.memory_bytes < peak_bytes(whole)


def test_a_structure_that_fits_at_no_spacing_is_told_how_large_one_may_be(size):
    large = replace(size, scale=300.0)
    limit = peak_bytes(
        forecast_bytes(replace(size, scale=30.0), SurfaceWork(spacing=4.0, kept_bytes=0))
    )
    with pytest.raises(
        MachineError, match=r"no spacing fits, about [0-9,]+ atoms at 1 Å do"
    ) as told:
        fitted(large, SurfaceWork(), limit, "it")
    atoms = int(str(told.value).split("about ")[2].split()[0].replace(",", ""))
    assert 1000 < atoms < 300 * 295


def test_many_times_are_told_to_come_one_by_one(size):
    work = SurfaceWork(spacing=1.0, times=100_000, samples=4, kept_bytes=0)
    limit = peak_bytes(forecast_bytes(size, replace(work, times=10))) + 2**24
    with pytest.raises(MachineError, match="one time without samples at a spacing of 1 Å fits"):
        fitted(size, work, limit, "it")


def test_a_training_is_refused_with_the_batch_that_fits(size):
    sizes, batch = [replace(size, scale=1.0)] * 12, MixtureBatchConfig(proteins=8)
    room = training_estimate(sizes, replace(batch, proteins=3), 10).memory_bytes + 2**19
    found = check_training(sizes, batch, 10, None)
    assert found.memory_bytes > room
    with pytest.raises(MachineError, match=r"batch.proteins=[23] fits"):
        check_training(sizes, batch, 10, room)
    with pytest.raises(MachineError, match="fewer or smaller proteins"):
        check_training(sizes, batch, 10, 2**20)
