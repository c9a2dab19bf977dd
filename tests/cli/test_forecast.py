import pytest

from undula.cli import forecast
from undula.data.bundled import models
from undula.errors import InputError, UsageError


def words(structure, out, *more):
    return [str(structure), "--time", "5", "-o", str(out), *more]


def test_a_single_sample_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="one sample has no spread"):
        forecast.run(words("none.pdb", tmp_path, "--model", "villin", "--samples", "1"))


def test_a_bundled_model_is_known_by_its_name(peptide, tmp_path):
    assert "villin" in models()
    with pytest.raises(InputError, match="did you mean villin"):
        forecast.run(words(peptide[0], tmp_path, "--model", "vilin"))


def test_a_model_of_typical_surfaces_refuses_samples(tmp_path):
    structure = models()["villin"].parent / "1vii_A.pdb"
    with pytest.raises(UsageError, match="draws no samples"):
        forecast.run(words(structure, tmp_path, "--model", "villin", "--samples", "4"))
