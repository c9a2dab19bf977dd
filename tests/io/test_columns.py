import numpy as np
import pytest

from undula.errors import InputError
from undula.io.columns import decimals, hybrid_36, integers


def place(row: int) -> str:
    return f"line {row + 1}"


def test_reads_numbers_as_they_are():
    texts = np.array([b"  1.500", b"-0.001 ", b" 1e2   ", b"     7 "])
    np.testing.assert_array_equal(decimals(texts, place, "x"), [1.5, -0.001, 100.0, 7.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"21.ish", "no number"),
        (b"1_0", "no number"),
        (b"1 2", "no number"),
        (b"0x10", "no number"),
        (b"nan", "not finite"),
        (b"-inf", "not finite"),
        (b"1e999", "no number"),
        (b"******", "asterisks"),
        (b"      ", "blank"),
    ],
)
def test_refuses_what_is_no_number_and_names_the_place(text, words):
    with pytest.raises(InputError, match=f"line 2: the x .*{words}"):
        decimals(np.array([b"1.0", text]), place, "x")


def test_whole_numbers_are_whole():
    assert integers(np.array([b"  12", b"  -3"]), place, "number").tolist() == [12, -3]
    with pytest.raises(InputError, match=r"line 1: the number is no whole number .1\.5"):
        integers(np.array([b"1.5"]), place, "number")


def test_counts_on_in_hybrid_36():
    assert hybrid_36("9999", 4) == 9999
    assert hybrid_36("A000", 4) == 10_000
    assert hybrid_36("ZZZZ", 4) == 10_000 + 26 * 36**3 - 1
    assert hybrid_36("a000", 4) == 10_000 + 26 * 36**3
    assert hybrid_36("-12", 4) == -12
    assert hybrid_36("1A", 4) is None
