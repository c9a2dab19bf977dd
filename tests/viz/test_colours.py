import numpy as np
import pytest
import torch

from undula.errors import InputError
from undula.types import Mesh
from undula.viz.colours import colour_map, colour_steps, common_top, display, linear, oklab


def mesh(values: list[float]) -> Mesh:
    return Mesh(
        vertices=torch.zeros(len(values), 3),
        faces=torch.zeros(0, 3, dtype=torch.long),
        scalars={"displacement": torch.tensor(values)},
    )


def test_display_undoes_linear():
    colours = np.linspace(0, 1, 30).reshape(10, 3)
    np.testing.assert_allclose(display(linear(colours)), colours, atol=1e-12)


def test_white_is_the_lightest_grey_of_oklab():
    np.testing.assert_allclose(oklab(np.ones((1, 3))), [[1, 0, 0]], atol=1e-6)


def test_the_map_darkens_in_equal_steps():
    steps = np.diff(oklab(colour_map())[:, 0])
    np.testing.assert_allclose(steps, steps.mean(), atol=2e-4)
    assert steps.mean() < 0


def test_neighbouring_colours_of_the_map_differ_about_equally():
    steps = np.linalg.norm(np.diff(oklab(colour_map()), axis=0), axis=1)
    assert steps.max() < 1.6 * steps.min()


def test_steps_run_from_zero_to_the_top_and_stay_there():
    steps = colour_steps(mesh([-1.0, 0.0, 1.0, 2.0, 9.0]), "displacement", 2.0)
    assert steps.tolist() == [0, 0, 128, 255, 255]


def test_the_top_is_the_quantile_of_all_frames_together():
    frames = [mesh([0.0] * 40 + [1.0] * 10), mesh([3.14] * 50)]
    assert common_top(frames, "displacement") == pytest.approx(3.2)
    assert common_top(frames[:1], "displacement") == pytest.approx(1.0)


@pytest.mark.parametrize("frames", [[], [mesh([])], [mesh([0.0, 0.0])]])
def test_the_top_is_one_where_nothing_moves(frames):
    assert common_top(frames, "displacement") == 1.0


def test_frames_without_the_number_do_not_count():
    assert common_top([mesh([5.0])], "spread") == 1.0


def test_refuses_a_number_that_is_not_finite():
    with pytest.raises(InputError, match="not finite"):
        common_top([mesh([1.0, float("nan")])], "displacement")


def test_refuses_to_colour_by_a_number_that_is_not_there():
    with pytest.raises(InputError, match="no scalar 'spread'"):
        colour_steps(mesh([1.0]), "spread", 1.0)
