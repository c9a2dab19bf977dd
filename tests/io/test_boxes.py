import numpy as np

from undula.io.boxes import edge_vectors, widths


def test_gives_the_diagonal_for_right_angles():
    box = edge_vectors(np.array([3.0, 4.0, 5.0]), np.array([90.0, 90.0, 90.0]))
    np.testing.assert_array_equal(box, np.diag([3.0, 4.0, 5.0]))


def test_gives_back_lengths_and_angles():
    lengths, angles = np.array([3.0, 4.0, 5.0]), np.array([70.0, 80.0, 100.0])
    a, b, c = edge_vectors(lengths, angles)
    np.testing.assert_allclose([np.linalg.norm(v) for v in (a, b, c)], lengths)
    between = [np.degrees(np.arccos(u @ v / np.sqrt(u @ u * (v @ v)))) for u, v in ((b, c), (a, c))]
    np.testing.assert_allclose(between, angles[:2])


def test_is_not_finite_where_the_angles_close_no_box():
    assert not np.isfinite(edge_vectors(np.ones(3), np.array([10.0, 10.0, 170.0]))).all()


def test_measures_the_distance_of_opposite_faces():
    skewed = np.array([[4.0, 0, 0], [4.0, 4.0, 0], [0, 0, 9.0]])
    np.testing.assert_allclose(widths(np.stack([np.eye(3), skewed])), [1.0, 4 / np.sqrt(2)])


def test_has_no_width_without_volume():
    assert widths(np.zeros((3, 3))) == 0
    assert widths(np.ones((3, 3))) == 0
