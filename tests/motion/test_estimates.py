import re
from dataclasses import replace

import pytest

from undula.errors import MachineError
from undula.estimates import peak_bytes
from undula.motion.drawing import WindowConfig
from undula.motion.estimates import (
    MotionSize,
    check_training,
    estimate,
    fitted,
    forecast_bytes,
    training_estimate,
    what_fits,
)
from undula.motion.model import MotionModelConfig

SIZE = MotionSize(
    atoms=5000,
    observed=100,
    times=64,
    samples=8,
    features=32,
    neighbours=20.0,
    at_once=64,
    states=5,
    passes=3160.0,
)


def room_for(**changes: int) -> int:
    return peak_bytes(forecast_bytes(replace(SIZE, **changes)))


def test_more_is_never_estimated_to_take_less():
    for more in ({"atoms": 6000}, {"observed": 200}, {"times": 80}, {"samples": 9}):
        assert forecast_bytes(replace(SIZE, **more)) > forecast_bytes(SIZE)
        assert estimate(replace(SIZE, **more)).seconds >= estimate(SIZE).seconds


def test_fewer_times_are_decoded_together_where_all_do_not_fit():
    assert fitted(SIZE, 2 * room_for(), "it") == SIZE
    assert fitted(SIZE, room_for(at_once=32) + 2**22, "it").at_once == 32
    assert fitted(SIZE, room_for(at_once=1) + 2**22, "it").at_once == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 3}, r"^[1-3] samples fit$"),
        ({"samples": 0, "times": 20}, r"^(1\d|2\d) times without samples fit$"),
        ({"samples": 0, "times": 1, "observed": 50}, r"^a window of [3-5]\d frames fits"),
        ({"samples": 0, "times": 1, "observed": 3, "atoms": 1000}, r"^about [\d,]+ atoms"),
        (
            {"samples": 0, "times": 1, "observed": 3, "atoms": 0},
            "^nothing fits, undula alone takes",
        ),
    ],
)
def test_what_fits_is_named_the_best_first(changes, sentence):
    room = room_for(at_once=1, **changes) - (2**22 if changes.get("atoms") == 0 else 0)
    with pytest.raises(MachineError, match="a forecast of 5000 atoms at 64 times with 8 samples"):
        fitted(SIZE, room, "it")
    assert re.search(sentence, what_fits(SIZE, room))


def test_a_training_is_refused_with_the_batch_that_fits():
    model, batch = MotionModelConfig(), WindowConfig(windows=6)
    found = training_estimate(3000, 1, model, replace(batch, windows=2), 10)
    with pytest.raises(MachineError, match=r"batch.windows=[12] with batch.segments=2 fits"):
        check_training(3000, 1, model, batch, 10, found.memory_bytes + 2**20)
    with pytest.raises(MachineError, match="train on a smaller system"):
        check_training(3000, 1, model, batch, 10, 2**20)
