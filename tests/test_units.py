import pytest

from undula.errors import UsageError
from undula.units import picoseconds, times


@pytest.mark.parametrize(
    ("text", "expected"),
    [("130", 130.0), ("130ps", 130.0), ("20ns", 20_000.0), ("2.5 fs", 0.0025), ("1e-3us", 1000.0)],
)
def test_a_time_is_read_with_its_unit(text, expected):
    assert picoseconds(text) == pytest.approx(expected)


def test_a_range_includes_its_stop_and_shares_its_last_unit():
    assert times("0:100:25") == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert times("0:4:2ns") == [0.0, 2000.0, 4000.0]
    assert times("0:100ns:50ns") == [0.0, 50_000.0, 100_000.0]
    assert times("0:1:0.3") == pytest.approx([0.0, 0.3, 0.6, 0.9])


def test_a_list_keeps_its_order():
    assert times("5, 10,2ns") == [5.0, 10.0, 2000.0]


@pytest.mark.parametrize("text", ["", "5:1:1", "0:10:0", "0:10:-1", "0:10", "x", "5 parsec", "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError):
        times(text)


def test_a_range_of_too_many_times_is_refused():
    with pytest.raises(UsageError, match="at most 1,000,000"):
        times("0:1e9:0.001")
