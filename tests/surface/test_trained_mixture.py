import json
from dataclasses import replace

import pytest
import torch
from tests.surface.mixtures import LOCAL, PAPER, bound, fresh, stirred

from undula.errors import InputError, UsageError
from undula.learn.checkpoint import load_weights, save_weights
from undula.surface.first_frame import REACH
from undula.surface.forecast import MovingSurface, forecast
from undula.surface.trained import WEIGHTS, TrainedSurface
from undula.surface.trained_mixture import TrainedMixture, load_trained


@pytest.fixture(scope="module")
def structure(family):
    return family[0].structure


@pytest.fixture(scope="module")
def points(structure):
    generator = torch.Generator().manual_seed(5)
    chosen = torch.randint(len(structure), (300,), generator=generator)
    noise = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    return structure.positions[chosen].double() + 2.5 * noise


@pytest.fixture(scope="module")
def moving(structure):
    return forecast(structure, [50.0], bound(stirred(LOCAL)), samples=3, seed=11)


def test_a_saved_model_forecasts_the_same_bytes(mixed, structure, points, tmp_path):
    mixed.save(tmp_path)
    again = load_trained(tmp_path)
    assert isinstance(again, TrainedMixture)
    assert again.provenance == json.loads(json.dumps(mixed.provenance))
    for name in ("blur", "memory_ps", "lasting"):
        assert getattr(again, name) == getattr(mixed, name), name
    one, two = (forecast(structure, [20.0], model, samples=1) for model in (mixed, again))
    for sample in (None, 0):
        found, expected = (each.sdf(points, 20.0, sample) for each in (two, one))
        assert torch.equal(found, expected)


def test_a_saved_forecast_gives_the_same_field_and_samples(moving, points, tmp_path):
    moving.save(tmp_path / "result")
    again = MovingSurface.load(tmp_path / "result")
    assert (again.samples, again.seed) == (3, 11)
    for sample in (None, 2):
        assert torch.equal(again.sdf(points, 50.0, sample), moving.sdf(points, 50.0, sample))


def test_either_kind_of_model_is_read_as_what_it_is(mixed, trained, tmp_path):
    trained.save(tmp_path / "known")
    mixed.save(tmp_path / "any")
    assert isinstance(load_trained(tmp_path / "known"), TrainedSurface)
    assert isinstance(load_trained(tmp_path / "any"), TrainedMixture)
    with pytest.raises(InputError, match="not a MoE-DSR model"):
        TrainedMixture.load(tmp_path / "known")
    with pytest.raises(InputError, match="not a surface model"):
        TrainedSurface.load(tmp_path / "any")
    with pytest.raises(InputError, match="holds no"):
        load_trained(tmp_path)


def test_damaged_weights_are_refused(mixed, tmp_path):
    mixed.save(tmp_path)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b"PK\x03\x04" + whole):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=WEIGHTS):
            load_trained(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("memory_ps"),
        lambda d: d.pop("lasting"),
        lambda d: d.pop("provenance"),
        lambda d: d.update(blur={"breadth": 1.0}),
        lambda d: d.update(memory_ps="long"),
        lambda d: d["model"]["config"]["gate"].update(experts=3),
        lambda d: d["model"].pop("horizon_ps"),
    ],
)
def test_a_wrong_description_is_refused(mixed, tmp_path, damage):
    mixed.save(tmp_path)
    weights, described = load_weights(tmp_path / WEIGHTS)
    damage(described)
    save_weights(tmp_path / WEIGHTS, weights, described)
    with pytest.raises(InputError):
        load_trained(tmp_path)


def test_training_moved_the_model_and_the_card_says_on_what(mixed, family):
    assert mixed.provenance["proteins"] == 3
    assert len(mixed.provenance["validation"]) == 1
    assert mixed.provenance["training_frames"] == 3 * 4
    assert [one["sha256"] for one in mixed.provenance["data"]] == [one.sha256 for one in family]
    assert mixed.horizon_ps == max(float(one.trajectories[0].times_ps[-1]) for one in family)
    assert "first frame" in mixed.notes[1]
    assert not mixed.model.training


def test_it_serves_a_protein_that_it_never_saw(mixed, dataset):
    found = forecast(dataset.structure.select(dataset.structure.residue_index > 1), [20.0], mixed)
    assert not found.level_set(20.0).is_empty


def test_at_time_zero_it_is_the_exact_first_frame_and_so_is_every_sample(moving, points):
    expected = moving.first_surface.signed_distance(points)
    for sample in (None, 0, 2):
        found = moving.sdf(points, 0.0, sample)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_far_from_the_first_surface_nothing_moves(moving, points):
    far = points + torch.tensor([40.0, 0.0, 0.0])
    expected = moving.first_surface.signed_distance(far)
    assert (expected > REACH).all()
    for sample in (None, 0):
        torch.testing.assert_close(moving.sdf(far, 50.0, sample), expected, rtol=0, atol=1e-5)


def test_samples_differ_and_the_typical_field_has_no_seed(structure, moving, points):
    other = forecast(structure, [50.0], moving.trained, samples=3, seed=12)
    again = forecast(structure, [50.0], moving.trained, samples=3, seed=11)
    assert torch.equal(other.sdf(points, 50.0), moving.sdf(points, 50.0))
    for sample in range(3):
        mine = moving.sdf(points, 50.0, sample)
        assert torch.equal(again.sdf(points, 50.0, sample), mine)
        assert (other.sdf(points, 50.0, sample) - mine).abs().mean() > 0.01
    pairs = [moving.sdf(points, 50.0, s) for s in range(3)]
    assert (pairs[0] - pairs[1]).abs().mean() > 0.01


def test_a_sample_does_not_depend_on_how_many_there_are_nor_on_when_it_is_asked(
    structure, moving, points
):
    few = forecast(structure, [10.0], moving.trained, samples=1, seed=11)
    few.sdf(points, 3.0, 0)
    assert torch.equal(few.sdf(points, 50.0, 0), moving.sdf(points, 50.0, 0))


def test_the_random_numbers_are_nearly_normal_and_forget_all_but_the_lasting_part(moving):
    fields = moving.posed
    memory, lasting = moving.trained.memory_ps, moving.trained.lasting
    paths = []
    for time in (100.0, 100.0 + memory / 2, 100.0 + memory, 100.0 + 5 * memory):
        numbers = [torch.cat(fields._motion(s, time), dim=1)[0] for s in range(300)]
        paths.append(torch.stack(numbers).double())
    start = paths[0]
    assert float(start.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(start.square().mean()) == pytest.approx(1.0, abs=0.03)
    assert float(start.pow(4).mean()) == pytest.approx(3.0, abs=0.2)
    for path, gap in zip(paths[1:], (0.5, 1.0, 5.0), strict=True):
        expected = lasting + (1 - lasting) * float(torch.tensor(-gap).exp())
        assert float((start * path).mean()) == pytest.approx(expected, abs=0.03)


def test_samples_are_refused_where_there_are_none(structure, moving, points):
    still = bound(fresh(replace(LOCAL, samples=False)))
    with pytest.raises(UsageError, match="draws no samples"):
        forecast(structure, [1.0], still, samples=2)
    with pytest.raises(UsageError, match="has 3 samples"):
        moving.sdf(points, 1.0, 3)


def test_a_model_with_fitted_codes_serves_an_unseen_protein(structure, points, monkeypatch):
    monkeypatch.setattr("undula.surface.latent.STEPS", 2)
    trained = bound(fresh(PAPER))
    assert "not equivariant" in trained.notes[2]
    found = forecast(structure, [5.0], trained).sdf(points, 5.0)
    assert torch.isfinite(found).all()
