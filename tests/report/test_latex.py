import re

from undula.report.latex import latex_table, latex_text


def test_what_latex_would_take_for_a_command_is_written_out():
    assert latex_text("1vii_A: 5 % & {x}") == r"1vii\_A: 5 \% \& \{x\}"
    assert latex_text("0.5 ± 0.1 Å²") == r"0.5 $\pm$ 0.1 \AA{}$^2$"
    assert latex_text("a\\b~c^d#e$f") == (
        r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\#e\$f"
    )


def test_a_table_has_a_line_for_each_row_and_its_sentences_in_the_caption():
    text = latex_table([["row", "IoU ↑"], ["copied (trivial)", "0.5"]], "A title", ["Too few."])
    assert r"\caption{A title. Too few.}" in text
    assert r"\begin{tabular}{lr}" in text
    assert "copied (trivial) & 0.5 \\\\" in text
    assert text.count("\\\\\n") == 2
    assert text.isascii() or re.sub("[–]", "", text).isascii()
