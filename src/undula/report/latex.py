"""Tables as LaTeX, ready to be put into a paper."""

from __future__ import annotations

from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "Å": r"\AA{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "–": "--",
    "³": r"$^3$",
    "²": r"$^2$",
    "₁": r"$_1$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
}


def latex_table(lines: Sequence[Sequence[str]], title: str, sentences: Sequence[str] = ()) -> str:
    """Return rows of cells as a LaTeX table that needs the package booktabs.

    Args:
        lines: Headings first; the first column is left-aligned, the others right.
        title: The caption.
        sentences: Below it, in the caption too: verdicts and notes belong to the numbers.
    """
    headings, *rows = [" & ".join(latex_text(cell) for cell in line) + r" \\" for line in lines]
    caption = latex_text(" ".join([f"{title.rstrip('.')}.", *sentences]))
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}",
            r"\toprule",
            headings,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Return text with everything that LaTeX would take for a command written out."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
