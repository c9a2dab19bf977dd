from __future__ import annotations

import pytest

from undula.motion.studies.regimes import regime_sentences, regimes

LAGS = [3, 6, 9]


def test_every_third_of_the_horizon_has_its_mean():
    found = regimes({"row": [1.0, 2.0, None, 4.0, 6.0, 8.0]}, [1, 2, 3, 4, 5, 6], 6)
    assert found[0].errors == (1.5, 4.0, 7.0)
    assert found[0].rises
    assert found[0].swing == pytest.approx(7 / 1.5 - 1)


def test_an_even_error_has_no_swing_and_does_not_rise():
    found = regimes({"row": [2.0, 2.0, 2.0]}, LAGS, 9)[0]
    assert found.swing == 0
    assert not found.rises


def test_a_part_without_a_number_has_none():
    found = regimes({"row": [2.0, None, 2.0]}, LAGS, 9)[0]
    assert found.errors == (2.0, None, 2.0)
    assert found.swing is None
    assert not found.rises


def test_each_row_is_told_beside_the_constant():
    found = regimes({"constant": [1.0, 1.0, 1.1], "ours": [0.5, 0.6, 0.9]}, LAGS, 9)
    first, second = regime_sentences(found)
    assert "10.0%" in first
    assert "ours moves by 80.0%: its error does not fall from early to middle and rises" in second


def test_says_so_where_there_is_no_constant():
    assert "no constant" in regime_sentences(regimes({"ours": [1.0, 1.0, 1.0]}, LAGS, 9))[0]
