from collections import namedtuple
from dataclasses import dataclass

import torch

from undula.learn.task import moved

META = torch.device("meta")
Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Frozen:
    points: torch.Tensor
    name: str


def test_moves_every_tensor_however_it_is_nested():
    one = torch.ones(2)
    batch = {"a": [one, (one, "text")], "b": Frozen(one, "c"), "d": Pair(one, 3), "e": None}
    there = moved(batch, META)
    assert there["a"][0].device == there["a"][1][0].device == META
    assert there["b"].points.device == there["d"].a.device == META
    assert there["a"][1][1] == "text"
    assert (there["b"].name, there["d"].b, there["e"]) == ("c", 3, None)


def test_what_is_there_already_stays_the_same_object():
    cloud = Frozen(torch.ones(2), "a")
    assert moved(cloud, torch.device("cpu")) is cloud
