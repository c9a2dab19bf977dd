import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.surface.mixtures import LOCAL, bound, stirred

from undula.data.bundled import villin
from undula.errors import InputError
from undula.io.structures import load_structure
from undula.surface.specialisation import (
    Routing,
    association,
    ecod_groups,
    mean_identity,
    mutual_information,
    protein_classes,
    representatives,
    routing,
    structure_class,
)

HALVES = np.array([0] * 10 + [1] * 10)


def test_equal_labels_share_their_entropy_and_independent_ones_nothing():
    assert mutual_information(HALVES, HALVES) == pytest.approx(math.log(2))
    assert mutual_information(HALVES, 1 - HALVES) == pytest.approx(math.log(2))
    assert mutual_information(HALVES, np.arange(20) % 2) == pytest.approx(0.0, abs=1e-12)


def test_a_class_that_the_expert_tells_has_a_small_p_and_a_constant_one_has_p_1():
    told = association(HALVES, ["ab"[i] for i in HALVES], torch.Generator().manual_seed(0))
    assert told.normalised == pytest.approx(1.0)
    assert told.p == pytest.approx(1 / 2001)
    assert told.null < 0.1
    same = association(HALVES, ["x"] * 20, torch.Generator().manual_seed(0))
    assert (same.information, same.p, same.classes) == (pytest.approx(0.0), 1.0, 1)


def test_when_every_protein_is_its_own_class_nothing_is_said():
    own = association(HALVES, [str(i) for i in range(20)], torch.Generator().manual_seed(0))
    assert own.information == pytest.approx(math.log(2))
    assert own.null == pytest.approx(own.information)
    assert own.p == 1.0


def test_random_labels_have_p_uniformly():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(60):
        labels = [str(i) for i in torch.randint(3, (20,), generator=generator).tolist()]
        found.append(association(HALVES, labels, generator, permutations=99).p)
    assert 0.35 < np.mean(found) < 0.75
    assert np.mean(np.array(found) <= 0.05) < 0.15


def test_the_same_seed_gives_the_same_p():
    labels = [str(i % 3) for i in range(20)]
    pair = [association(HALVES, labels, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert pair[0] == pair[1]


def test_load_and_entropies_have_their_closed_forms():
    even = Routing(("a", "b"), np.array([0, 1]), np.full((2, 2), 0.5))
    assert even.load.tolist() == [0.5, 0.5]
    assert even.load_entropy == pytest.approx(1.0)
    assert even.routing_entropy == pytest.approx(1.0)
    sharp = Routing(("a", "b"), np.array([0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (sharp.load_entropy, sharp.routing_entropy) == (0.0, 0.0)
    assert even.part(["b"]).names == ("b",)
    alone = Routing(("a",), np.array([0]), np.ones((1, 1)))
    assert alone.load_entropy == 0.0


def test_the_surest_protein_comes_first():
    routed = Routing(
        ("a", "b", "c"), np.array([0, 0, 1]), np.array([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9]])
    )
    assert representatives(routed, 0) == ["b", "a"]
    assert representatives(routed, 1) == ["c"]


def test_routing_is_that_of_the_model_and_does_not_depend_on_the_others():
    structure = load_structure(villin()[0])
    trained = bound(stirred(LOCAL))
    one = routing(trained, [structure])
    two = routing(trained, [replace(structure, name="other"), structure])
    assert one.probabilities.shape == (1, 4)
    assert one.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
    assert one.experts[0] == one.probabilities[0].argmax() == two.experts[1]
    np.testing.assert_array_equal(one.probabilities[0], two.probabilities[1])


def test_villin_is_mostly_helix_short_and_small():
    structure = load_structure(villin()[0])
    assert structure_class(structure) == "mostly helix"
    other = replace(structure, name="twin")
    classes = protein_classes([structure, other])
    assert classes["length"] == ["below 50"] * 2
    assert classes["size"] == ["below 10"] * 2
    assert len(set(classes["sequence cluster"])) == 1
    assert mean_identity([structure, other], torch.Generator()) == (1.0, 1)
    assert math.isnan(mean_identity([structure], torch.Generator())[0])


def test_ecod_gives_the_groups_of_a_chain(tmp_path):
    path = tmp_path / "ecod.txt"
    path.write_text(
        "#/data/ecod\n#uid\tecod_domain_id\tf_id\tpdb\tchain\n"
        "1\te1viiA1\t601.4.1.2\t1vii\tA\n2\te9xyzB1\t11.1.1\t9xyz\tB\n3\te9xyzB2\t7.1\t9xyz\tB\n"
    )
    assert ecod_groups(path) == {("1vii", "A"): {"601"}, ("9xyz", "B"): {"11", "7"}}
    structure = replace(load_structure(villin()[0]), name="1vii_A")
    classes = protein_classes([structure, replace(structure, name="1abc_A")], path)
    assert classes["ECOD X-group"] == ["601", "none"]


def test_another_file_than_ecods_is_refused(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("a\tb\n")
    with pytest.raises(InputError, match="no ECOD domain file"):
        ecod_groups(path)
    with pytest.raises(InputError, match="cannot read"):
        ecod_groups(tmp_path / "nowhere")
