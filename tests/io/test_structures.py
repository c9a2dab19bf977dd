import gzip

import gemmi
import numpy as np
import pytest
import torch
from tests.io.alanines import ALANINE, NEXT, pdb_line, peptide_lines, residue_lines

from undula.errors import InputError, UsageError
from undula.io.structures import load_structure


def counts(structure):
    return {notice.code: notice.count for notice in structure.notices}


def test_reads_a_peptide_without_a_word(write):
    structure = load_structure(write([*peptide_lines(3), "END"]))
    assert len(structure) == 15
    assert structure.residues == 3
    assert structure.notices == ()
    assert structure.positions.dtype == torch.float64
    torch.testing.assert_close(structure.positions[6], torch.tensor(NEXT + ALANINE["CA"]))
    assert structure.chain_ids.tolist() == ["A"] * 15
    assert structure.file_atoms == 15


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_does_not_mind_line_ends_or_letters_of_other_languages(write, end):
    lines = ["REMARK Å", *peptide_lines(2)]
    assert len(load_structure(write(end.join(lines).encode("latin-1")))) == 10
    assert len(load_structure(write(gzip.compress(end.join(lines).encode()), "x.gz"))) == 10


def test_pdb_mmcif_and_gro_of_the_same_atoms_agree(write):
    lines = peptide_lines(4)
    pdb = load_structure(write(lines))
    document = gemmi.read_pdb_string("\n".join(lines)).make_mmcif_document()
    mmcif = load_structure(write(document.as_string().encode(), "a.cif"))
    rows = [
        f"{line[22:26].strip():>5}{'ALA':<5}{line[12:16].strip():>5}{k:5d}"
        + "".join(f"{float(line[i : i + 8]) / 10:9.4f}" for i in (30, 38, 46))
        for k, line in enumerate(lines, start=1)
    ]
    gro = load_structure(write(["title", f"{len(rows)}", *rows, " 5.0 5.0 5.0"], "a.gro"))
    for other in (mmcif, gro):
        torch.testing.assert_close(other.positions, pdb.positions)
        for label in ("elements", "atom_names", "residue_names", "residue_numbers"):
            assert getattr(other, label).tolist() == getattr(pdb, label).tolist()
        assert other.residue_index.tolist() == pdb.residue_index.tolist()
    torch.testing.assert_close(gro.box, 50 * torch.eye(3, dtype=torch.float64))


def test_file_index_leads_back_to_the_lines(write):
    lines = [
        pdb_line("H", (0.0, 0.0, 9.0), number=1),
        *peptide_lines(2),
        pdb_line("O", (9.0, 9.0, 9.0), residue="HOH", record="HETATM", number=9),
    ]
    structure = load_structure(write(lines))
    assert structure.file_index.tolist() == list(range(1, 11))
    assert structure.file_atoms == 12
    assert counts(structure) == {"hydrogens-dropped": 1, "water-dropped": 1}


def test_options_keep_what_is_dropped_by_default(write):
    lines = [
        *peptide_lines(2),
        pdb_line("H", (0.0, 0.9, 0.5), number=2),
        pdb_line("ZN", (9.0, 0.0, 9.0), residue="ZN", element="ZN", number=8),
        pdb_line("O", (9.0, 9.0, 9.0), residue="HOH", number=9),
    ]
    path = write(lines)
    kept = load_structure(path, hydrogens="keep", heterogens="keep")
    assert sorted(set(kept.elements.tolist())) == ["C", "H", "N", "O", "ZN"]
    assert counts(kept) == {"water-dropped": 1}
    assert len(load_structure(path, select="all", hydrogens="keep")) == len(lines)


def test_takes_the_conformation_of_highest_occupancy_throughout(write):
    lines = []
    for name, position in ALANINE.items():
        for altloc, occupancy, shift in (("A", 0.4, 0.0), ("B", 0.6, 0.3)):
            moved = np.add(position, (0, 0, shift))
            lines.append(pdb_line(name, moved, altloc=altloc, occupancy=occupancy))
    path = write(lines)
    for altloc, z in (("highest", 0.3), ("first", 0.0), ("A", 0.0), ("B", 0.3)):
        structure = load_structure(path, altloc=altloc)
        assert len(structure) == 5
        assert float(structure.positions[0, 2]) == z
    assert counts(structure) == {"altlocs-dropped": 5}


def test_equal_occupancies_give_the_first_conformation(write):
    lines = [
        pdb_line(name, np.add(position, (0, 0, shift)), altloc=altloc, occupancy=0.5)
        for altloc, shift in (("B", 0.3), ("A", 0.0))
        for name, position in ALANINE.items()
    ]
    assert float(load_structure(write(lines)).positions[0, 2]) == 0.3


def test_one_residue_name_wins_where_there_are_several(write):
    lines = residue_lines(1, altloc="A", occupancy=0.3, residue="SER")
    lines += residue_lines(2)
    lines += residue_lines(1, altloc="B", occupancy=0.7)
    structure = load_structure(write(lines))
    assert structure.residues == 2
    assert structure.residue_names.tolist() == ["ALA"] * 10
    assert counts(structure) == {"altlocs-dropped": 5, "microheterogeneity": 1}
    assert structure.file_index.tolist() == [*range(10, 15), *range(5, 10)]


def test_keeps_the_first_of_atoms_listed_twice(write):
    lines = [*residue_lines(1), pdb_line("CB", (2.0, -0.8, 0.0))]
    structure = load_structure(write(lines))
    assert len(structure) == 5
    assert counts(structure) == {"duplicates-dropped": 1}


def test_waters_with_one_number_are_different_waters(write):
    lines = [pdb_line("O", (3.0 * k, 0.0, 0.0), residue="HOH", record="HETATM") for k in range(4)]
    assert load_structure(write(lines), select="all").residues == 4


def test_repeated_chain_ids_stay_apart(write):
    lines = [*peptide_lines(1), "TER", *residue_lines(1, start=9)]
    structure = load_structure(write(lines))
    assert structure.residues == 2
    assert counts(structure) == {"chain-breaks": 1}


def test_insertion_codes_make_residues(write):
    lines = [*residue_lines(1, start=1), *residue_lines(1, start=2, code="A")]
    structure = load_structure(write(lines))
    assert structure.residues == 2
    assert structure.insertion_codes.tolist() == [""] * 5 + ["A"] * 5
    assert structure.notices == ()


def test_reads_hybrid_36_residue_numbers(write):
    lines = [line[:22] + "A00F" + line[26:] for line in residue_lines(1)]
    assert load_structure(write(lines)).residue_numbers.tolist() == [10_015] * 5


def test_chains_are_chosen_by_id_and_the_blank_one_by_underscore(write):
    lines = [
        *residue_lines(1, chain="A"),
        *residue_lines(2, chain=""),
        *residue_lines(3, chain="b"),
    ]
    path = write(lines)
    assert load_structure(path, chain="b, A").chain_ids.tolist() == ["A"] * 5 + ["b"] * 5
    assert load_structure(path, chain="_").chain_ids.tolist() == [""] * 5
    with pytest.raises(InputError, match="no chain C, only _, A, b"):
        load_structure(path, chain="C")


def test_segments_name_chains_that_have_no_id(write):
    structure = load_structure(write(peptide_lines(2, chain="", segment="PROT")))
    assert structure.chain_ids.tolist() == ["PROT"] * 10
    assert counts(structure) == {"segments-as-chains": 10}


def test_guesses_elements_that_are_missing(write):
    lines = [line[:76] for line in peptide_lines(2)]
    lines.append(pdb_line("CA", (9.0, 0.0, 0.0), residue="CA", number=7, element="CA")[:76])
    structure = load_structure(write(lines), heterogens="keep")
    assert structure.elements.tolist() == [*"NCCOC", *"NCCOC", "CA"]
    assert counts(structure) == {"elements-guessed": 11}


def test_refuses_an_element_that_nobody_knows(write):
    lines = [*residue_lines(1), pdb_line("QQ", (5.0, 0.0, 0.0), element="Q")]
    with pytest.raises(InputError, match="line 6, atom QQ in ALA 1 of chain A: unknown element Q"):
        load_structure(write(lines))


def test_modified_residues_stay_and_nucleic_acids_go(write):
    sugar = [
        pdb_line(name, (20.0 + k, 0.0, 0.0), residue="DA", chain="B")
        for k, name in enumerate(("C1'", "C2'", "C3'", "C4'"))
    ]
    structure = load_structure(write([*peptide_lines(2, residue="SEP"), *sugar]))
    assert structure.residues == 2
    assert counts(structure) == {"nonstandard-residues": 2, "nucleic-dropped": 1}


def test_counts_missing_atoms_breaks_and_zero_occupancies(write):
    lines = residue_lines(1) + residue_lines(3, occupancy=0.0)[:-1] + residue_lines(4)[2:]
    structure = load_structure(write(lines))
    assert counts(structure) == {
        "atoms-missing": 3,
        "alpha-carbons-missing": 1,
        "chain-breaks": 1,
        "zero-occupancies": 4,
    }


def test_mirror_images_are_read_and_counted(write):
    lines = [pdb_line(name, (x, y, -z)) for name, (x, y, z) in ALANINE.items()]
    assert counts(load_structure(write(lines))) == {"mirrored-residues": 1}


def test_says_where_only_alpha_carbons_are_there(write):
    lines = [pdb_line("CA", k * NEXT, number=k) for k in range(1, 6)]
    found = counts(load_structure(write(lines)))
    assert found == {"atoms-missing": 20, "alpha-carbons-only": 5}


def test_the_first_model_is_used_and_any_can_be_chosen(write):
    moved = [line[:46] + f"{k + 5.0:8.3f}" + line[54:] for k, line in enumerate(residue_lines(1))]
    lines = ["MODEL        1", *residue_lines(1), "ENDMDL", "MODEL        2", *moved, "ENDMDL"]
    path = write(lines)
    assert counts(load_structure(path)) == {"one-model-used": 1}
    assert float(load_structure(path).positions[0, 2]) == 0.0
    assert float(load_structure(path, model=2).positions[0, 2]) == 5.0
    with pytest.raises(InputError, match="no model 3, the file has 2"):
        load_structure(path, model=3)


def test_refuses_models_that_differ(write):
    lines = ["MODEL        1", *residue_lines(1), "ENDMDL"]
    fewer = [*lines, "MODEL        2", *residue_lines(1)[:4], "ENDMDL"]
    with pytest.raises(InputError, match="model 2 has 4 atoms, the first has 5"):
        load_structure(write(fewer))
    other = [*lines, "MODEL        2", *residue_lines(1)[::-1], "ENDMDL"]
    with pytest.raises(InputError, match="model 2 has other atoms"):
        load_structure(write(other))


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (["ENDMDL"], "ENDMDL without a MODEL"),
        (["MODEL        1"], "not closed by ENDMDL"),
        (["MODEL        1", "ENDMDL"], "outside of any model"),
        (["MODEL        1", "MODEL        2"], "MODEL before the ENDMDL"),
    ],
)
def test_refuses_models_that_do_not_enclose_their_atoms(write, before, words):
    with pytest.raises(InputError, match=words):
        load_structure(write([*before, *residue_lines(1)]))


@pytest.mark.parametrize("text", ["     nan", "     inf", "********", " 21.ish ", "        "])
def test_refuses_coordinates_that_are_no_numbers_and_names_the_line(write, text):
    lines = peptide_lines(2)
    lines[3] = lines[3][:38] + text + lines[3][46:]
    with pytest.raises(InputError, match=r"a\.pdb: line 4: the y coordinate"):
        load_structure(write(lines))


def test_refuses_an_atom_far_away_by_name_even_if_it_would_be_dropped(write):
    far = pdb_line("O", (9999.0, 0.0, 0.0), residue="HOH", number=77)
    with pytest.raises(InputError, match=r"line 11, atom O in HOH 77.*exceeds 5,000 Å"):
        load_structure(write([*peptide_lines(2), far]))


def test_refuses_two_atoms_of_a_residue_at_one_place(write):
    lines = residue_lines(1)
    lines[4] = pdb_line("CB", ALANINE["CA"])
    with pytest.raises(InputError, match=r"line 2, atom CA.*coincides with line 5, atom CB"):
        load_structure(write(lines))


def test_drops_a_second_copy_of_a_chain(write):
    lines = [*peptide_lines(3, chain="A"), *peptide_lines(3, chain="B")]
    structure = load_structure(write(lines))
    assert structure.chain_ids.tolist() == ["A"] * 15
    assert counts(structure) == {"coincident-dropped": 15}


def test_names_the_option_for_nanometres(write):
    lines = [
        pdb_line(name, (np.array(position) + NEXT * k) / 10, number=k + 1)
        for k in range(5)
        for name, position in ALANINE.items()
    ]
    path = write(lines)
    with pytest.raises(InputError, match=r"0\.367 Å.*--length-unit nm"):
        load_structure(path)
    scaled = load_structure(path, length_unit="nm")
    torch.testing.assert_close(scaled.positions[5], torch.tensor(NEXT), atol=0.006, rtol=0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["HEADER    NOTHING", "END"], "no atoms"),
        ([pdb_line("O", (0, 0, 0), residue="HOH")], "no protein among 1 residues .HOH"),
        ([pdb_line("H", (0, 0, 0))], "no atoms are left"),
        (["data_x", "_cell.length_a 3"], "no _atom_site"),
        (["data_x", "loop_", "_atom_site.Cartn_x", "'1.0"], "mmCIF syntax"),
        (
            ["t", "3", "    1ALA     CA    1   0.000   0.100   0.200", "   1.0   1.0   1.0"],
            "promises 3 atoms, but 1",
        ),
    ],
)
def test_refuses_what_holds_no_protein_in_one_sentence(write, lines, words):
    with pytest.raises(InputError, match=words) as caught:
        load_structure(write(lines))
    assert "\n" not in str(caught.value)


def test_refuses_options_that_do_not_exist(write):
    path = write(peptide_lines(1))
    for option in ("hydrogens", "heterogens", "select", "length_unit", "altloc"):
        with pytest.raises(UsageError, match=option):
            load_structure(path, **{option: "some"})


def test_takes_the_unit_cell_as_box_but_not_the_unit_cube(write):
    cell = "CRYST1   30.000   40.000   50.000  90.00  90.00  90.00 P 1           1"
    structure = load_structure(write([cell, *peptide_lines(2)]))
    expected = torch.diag(torch.tensor([30.0, 40.0, 50.0], dtype=torch.float64))
    torch.testing.assert_close(structure.box, expected)
    cube = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1"
    assert load_structure(write([cube, *peptide_lines(2)])).box is None


def test_reads_all_single_chains_as_gemmi_does(shared):
    paths = sorted((shared / "structures").glob("*.pdb.gz"))
    assert len(paths) == 77
    for path in paths:
        structure = load_structure(path, heterogens="keep")
        expected = [
            list(atom.atom.pos.tolist()) for atom in gemmi.read_structure(str(path))[0].all()
        ]
        assert structure.file_atoms == len(expected)
        np.testing.assert_allclose(
            structure.positions.numpy(), np.array(expected)[structure.file_index], atol=1e-9
        )


def test_reads_two_hundred_thousand_atoms_in_seconds(write):
    lines = []
    for copy in range(2_700):
        x, y = divmod(copy, 52)
        shift = np.array([0.0, 15.0 * x, 15.0 * y])
        lines += [
            pdb_line(name, np.add(position, shift + NEXT * k), number=f"{k + 1}", chain="A")
            for k in range(15)
            for name, position in ALANINE.items()
        ]
    structure = load_structure(write(lines))
    assert len(structure) == 202_500
    assert counts(structure) == {"chain-breaks": 2_699}
