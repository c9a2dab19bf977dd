import pytest

from undula.data.bundled import villin
from undula.data.estimates import (
    check_prepare,
    check_record,
    frames_bytes,
    prepare_bytes,
    prepare_estimate,
    record_bytes,
    record_estimate,
    surface_points,
    used_frames,
)
from undula.data.observed import check_frames
from undula.data.prepare_config import PrepareConfig
from undula.errors import MachineError
from undula.estimates import resident_bytes
from undula.io.structures import load_structure

TOPOLOGY, RUN, _ = villin()


@pytest.fixture(scope="module")
def structure():
    return load_structure(TOPOLOGY)


def test_frames_are_counted_by_the_headers():
    assert used_frames(RUN, 1) == 100
    assert used_frames(RUN, 30) == 4


def test_more_is_never_estimated_to_take_less(structure):
    config = PrepareConfig()
    for frames in (1, 10, 1000, 10_000_000):
        more, less = (prepare_bytes(295, 2000.0, n, config) for n in (frames + 1, frames))
        assert more >= less
    finer = PrepareConfig(spacing=0.5)
    assert surface_points(structure, finer) == pytest.approx(4 * surface_points(structure, config))


def test_recordings_that_lie_on_the_disk_take_less_than_their_frames():
    assert record_bytes(1000, 100) == frames_bytes(1000, 100)
    assert record_bytes(50_000, 100_000) < 12 * 50_000 * 100_000 / 10


def test_preparing_says_what_it_takes_or_which_stride_fits(structure):
    told = []
    check_prepare(structure, [RUN], PrepareConfig(), None, told.append)
    assert told[0].startswith("estimate: ")
    config = PrepareConfig(frames_per_shard=1)
    limit = prepare_estimate(structure, [30], config).memory_bytes + 2**20
    with pytest.raises(MachineError, match=r"100 frames takes .* a stride of [234] fits$"):
        check_prepare(structure, [RUN], config, limit, told.append)
    with pytest.raises(MachineError, match="not one frame fits"):
        check_prepare(structure, [RUN], config, 2**20, told.append)
    assert len(told) == 1


def test_recording_says_what_it_takes_or_which_stride_fits(structure):
    told = []
    check_record(structure, [RUN], 1, None, told.append)
    assert told[0].startswith("estimate: ")
    limit = record_estimate(structure, [30]).memory_bytes + 2**21
    with pytest.raises(
        MachineError, match=r"100 frames of 295 atoms takes .* stride of [2-4] fits$"
    ):
        check_record(structure, [RUN], 1, limit, told.append)


def test_reading_frames_says_how_many_fit(structure):
    check_frames(structure, RUN, 100)
    with pytest.raises(MachineError, match=r"reading 100000 frames takes .* \d+ frames fit"):
        check_frames(structure, RUN, 100_000, resident_bytes() + 2**28)
