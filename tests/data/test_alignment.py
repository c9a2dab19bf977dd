import itertools

import numpy as np
import pytest

from undula.data.alignment import (
    BLOSUM62,
    GAP_EXTEND,
    GAP_OPEN,
    LETTERS,
    Alignment,
    expectation,
    letter_numbers,
    local_alignment,
)

NOTHING = Alignment(0, 0, 0, 0, 0, 0, 0)


def aligned(first, second):
    return local_alignment(letter_numbers(first), letter_numbers(second))


def best_by_recursion(first, second):
    """Return the best score of any alignment of any two substrings, by plain enumeration."""

    def pair(a, b):
        a, b = letter_numbers(a), letter_numbers(b)
        table = np.full((len(a) + 1, len(b) + 1), -np.inf)
        for i, j in itertools.product(range(len(a) + 1), range(len(b) + 1)):
            choices = [0.0] if i == j == 0 else []
            if i and j:
                choices.append(table[i - 1, j - 1] + BLOSUM62[a[i - 1], b[j - 1]])
            choices += [table[i - n, j] - GAP_OPEN - (n - 1) * GAP_EXTEND for n in range(1, i + 1)]
            choices += [table[i, j - n] - GAP_OPEN - (n - 1) * GAP_EXTEND for n in range(1, j + 1)]
            table[i, j] = max(choices)
        return table.max()

    starts = itertools.product(range(len(first)), range(len(second)))
    return max(max(pair(first[i:], second[j:]) for i, j in starts), 0)


def test_the_matrix_is_symmetric_and_prefers_every_letter_to_all_others():
    assert (BLOSUM62 == BLOSUM62.T).all()
    known = BLOSUM62[:20, :20]
    assert (np.diag(known)[:, None] > known - 100 * np.eye(20)).all()
    assert known.sum() == -426
    assert dict(zip(LETTERS, np.diag(known).tolist(), strict=True))["W"] == 11


def test_a_sequence_is_identical_to_itself_over_its_whole_length():
    text = LETTERS * 2
    found = aligned(text, text)
    assert found == Alignment(2 * int(np.diag(BLOSUM62)[:20].sum()), 40, 40, 0, 40, 0, 40)
    assert found.identity == 1.0


def test_a_shared_part_is_found_where_it_is():
    found = aligned("GGGG" + "WCWHW" + "GG", "P" + "WCWHW" + "PPPPP")
    assert found[3:] == (4, 9, 1, 6)
    assert (found.matches, found.columns) == (5, 5)


def test_a_gap_costs_its_opening_and_its_length_and_counts_as_columns():
    left, right = "WCWHWCWHWC", "HWMWCWHWMW"
    found = aligned(left + "DDD" + right, left + right)
    whole = aligned(left + right, left + right)
    assert found.score == whole.score - GAP_OPEN - 2 * GAP_EXTEND
    assert (found.matches, found.columns) == (20, 23)
    assert found.identity == pytest.approx(20 / 23)
    assert found[3:] == (0, 23, 0, 20)


def test_equals_plain_enumeration_on_short_random_sequences():
    random = np.random.default_rng(0)
    for _ in range(12):
        first, second = ("".join(random.choice(list("WWCCHDKE"), 7)) for _ in range(2))
        assert aligned(first, second).score == best_by_recursion(first, second)


def test_swapping_the_sequences_keeps_the_score():
    random = np.random.default_rng(1)
    for _ in range(20):
        first, second = ("".join(random.choice(list(LETTERS), n)) for n in (60, 45))
        assert aligned(first, second).score == aligned(second, first).score


def test_nothing_similar_and_nothing_at_all_give_an_empty_alignment():
    assert aligned("WWWW", "DDDD") == NOTHING
    assert aligned("", "ACD") == NOTHING
    assert NOTHING.identity == 0.0


def test_unknown_letters_are_never_identical():
    assert aligned("XXXXXXXX", "XXXXXXXX") == NOTHING
    found = aligned("WCWXWCW", "WCWXWCW")
    assert (found.matches, found.columns) == (6, 7)
    assert letter_numbers("UOBZJ").tolist() == [LETTERS.index("C"), LETTERS.index("K"), 20, 20, 20]


def test_the_expectation_falls_with_the_score_and_grows_with_what_is_searched():
    assert expectation(0, 100, 1000) == pytest.approx(0.041 * 1e5)
    assert expectation(10, 100, 1000) == pytest.approx(expectation(0, 100, 1000) * np.exp(-2.67))
    assert expectation(50, 100, 2000) == pytest.approx(2 * expectation(50, 100, 1000))
