import numpy as np
import pytest
import torch

from undula.data.bundled import villin
from undula.errors import InputError
from undula.io.datasets import write_structure
from undula.io.sequences import load_sequences, sequence_of
from undula.io.structures import load_structure

VILLIN = "MLSDEDFKAVFGMTRSAFANLPLWKQQNLKKEKGLF"


def test_a_fasta_file_gives_names_and_sequences_in_order(write):
    path = write([">one some words", "ACD", "ef ", "", ">two", "GHK*"], "a.fasta")
    assert list(load_sequences([path]).items()) == [("one", "ACDEF"), ("two", "GHK")]


def test_a_csv_file_gives_the_same_whatever_its_other_columns(write):
    path = write(["seqres, name,length", "ACDEF,one,5", "GHK,two,3"], "a.csv")
    assert load_sequences([path]) == {"one": "ACDEF", "two": "GHK"}
    path = write(["id,sequence", "one,ACDEF"], "b.csv")
    assert load_sequences([path]) == {"one": "ACDEF"}


def test_several_files_add_up_and_a_data_set_is_named_as_its_folder(write, tmp_path):
    (tmp_path / "1vii_A").mkdir()
    write_structure(tmp_path / "1vii_A", load_structure(villin()[0]))
    path = write([">one", "ACD"], "a.fasta")
    assert load_sequences([path, tmp_path / "1vii_A"]) == {"one": "ACD", "1vii_A": VILLIN}


def test_what_is_no_standard_amino_acid_is_x_and_what_has_no_alpha_carbon_is_left_out():
    structure = load_structure(villin()[0])
    names = structure.residue_names.copy()
    names[structure.residue_index == 1] = "SEP"
    names[structure.residue_index == 2] = "HIE"
    changed = structure.select(np.arange(len(structure)))
    object.__setattr__(changed, "residue_names", names)
    assert sequence_of(changed) == "MXH" + VILLIN[3:]
    without = changed.select(~np.isin(changed.residue_index, [0]))
    assert sequence_of(without) == "XH" + VILLIN[3:]
    alone = changed.select(changed.atom_names != "CA")
    assert sequence_of(alone) == ""
    assert torch.isfinite(alone.positions).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([">one", "ACD", ">one", "GHK"], "one is there twice"),
        ([">one", "ACD", ">two", ">three", "A"], "the sequence of two is empty"),
        ([">", "ACD"], "a sequence has no name, after 0 others"),
        ([">one", "AC-D"], "letter 3 of one is '-', no amino acid"),
        (["name,letters", "one,ACD"], "neither FASTA"),
        (["name,seqres"], "holds no sequences"),
        (["name,seqres", "one"], "the sequence of one is empty"),
        ([""], "neither FASTA"),
    ],
)
def test_odd_files_are_named_with_the_place(write, lines, message):
    with pytest.raises(InputError, match=rf"a\.txt.*{message}"):
        load_sequences([write(lines, "a.txt")])


def test_a_name_in_two_files_is_an_error(write):
    first, second = write([">one", "ACD"], "a.fasta"), write([">one", "ACD"], "b.fasta")
    with pytest.raises(InputError, match=r"b\.fasta: one is there twice"):
        load_sequences([first, second])


def test_a_missing_file_and_one_that_is_no_text_are_named(write, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: No such file"):
        load_sequences([tmp_path / "none.csv"])
    with pytest.raises(InputError, match=r"a\.bin: it is no text"):
        load_sequences([write(b"\xff\xfe\x00\x81", "a.bin")])
