"""words.py's promises: what is written, and how it is said."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
import words

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("written", "said"),
    {
        "It cost $5, £3.14, $1, €2.5 or $1.5 million.": "It cost five dollars, three pounds, fourteen pence, "
        "one dollar, two euro, fifty cents or one point five million dollars.",
        "$0.999, $1,234.00": "zero point nine nine nine dollars, one thousand, two hundred and thirty-four dollars",
        "3.14 of 1,234 and 1,000,001": "three point one four of one thousand, two hundred and thirty-four and "
        "one million and one",
        "the 1st, 2nd, 12th, 20th and 21st of 100": "the first, second, twelfth, twentieth and twenty-first of "
        "one hundred",
        "1984, 2005, 1905, the 1960s": "nineteen eighty-four, two thousand and five, nineteen oh-five, "
        "the nineteen sixties",
        "agent 007 at 10:30, -5°": "agent zero zero seven at ten thirty, minus five degree",
        "1914–1918": "nineteen fourteen to nineteen eighteen",
        "50% & more": "fifty percent and more",
        "version 3.10 of .5, from 192.168.0.1": "version three point one zero of point five, from "
        "one hundred and ninety-two point one six eight point zero point one",
        "2½ x² ≠ 5km": "two one over two x two not equal to five km",
        "Café, naïve, Æsir, Straße, Łódź": "Cafe, naive, Aesir, Strasse, Lodz",
        "“Don’t panic,” he said — ‘loudly’…": "Don't panic, he said, loudly...",
        "Mr. and Dr. *Adams* -- (two) \N{BUTTERFLY}": "Mister and Doctor Adams, two butterfly",
        "up‑to‑date ‐ tea": "up-to-date, tea",
        "9" * 30: " ".join(["nine"] * 30),
        f"${'9' * 400}": " ".join(["nine"] * 400) + " dollars",
    }.items(),
)
def test_numbers_and_signs_become_words(written, said):
    said_words, lost = words.in_words(written, set(LETTERS))
    assert (said_words.strip(), lost) == (said, [])


def test_long_sentences_are_cut_at_clauses_or_else_at_words():
    for text in ("a clause of some words, " * 40, "word " * 300, "x" * 1000, "One. " * 100):
        said = [piece for piece, _ in words.pieces(text)]
        assert max(map(len, said)) <= words.LONGEST and "".join(said).replace(" ", "") == text.replace(" ", "")
    assert all(piece.endswith(",") for piece, _ in words.pieces("a clause of some words, " * 40))


def test_sentences_do_not_end_at_initials():
    assert [piece for piece, _ in words.pieces("By J. R. Hartley. It sold.")] == ["By J. R. Hartley.", "It sold."]
