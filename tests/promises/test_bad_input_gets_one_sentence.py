"""Promise 5: bad input ends with exit code 3 and one sentence that names the file and the place.

Never a traceback, never a plausible-looking result. Every damaged file is made here from a toy;
the 54 real ones are in `tests/io/test_bad_inputs.py`, stored things and settings in
`tests/promises/test_damaged_data_and_settings_get_one_sentence.py`.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest
from mdtraj.formats import DCDTrajectoryFile, TRRTrajectoryFile, XTCTrajectoryFile
from tests.data.fixed_point import swinging, write_fluid
from tests.io.alanines import ALANINE, NEXT, pdb_line, peptide_lines, residue_lines
from tests.promises.answers import answer, check_refused, snapshot

from undula.io.xtc import open_xtc

PEPTIDE = peptide_lines(4)
FRAMES = 12
TIMES = 2.0 * np.arange(FRAMES, dtype=np.float32)


def changed(line: int, start: int, text: str) -> list[str]:
    """Return the peptide with other characters in one of its lines (both from 0)."""
    lines = list(PEPTIDE)
    lines[line] = lines[line][:start] + text + lines[line][start + len(text) :]
    return lines


def models(*each: list[str]) -> list[str]:
    parts = [[f"MODEL     {n:4d}", *lines, "ENDMDL"] for n, lines in enumerate(each, start=1)]
    return [line for part in parts for line in part]


def scaled(factor: float) -> list[str]:
    return [
        pdb_line(line[12:16].strip(), factor * place(line), number=int(line[22:26]))
        for line in PEPTIDE
    ]


def place(line: str) -> np.ndarray:
    return np.array([float(line[i : i + 8]) for i in (30, 38, 46)])


def mmcif(lines: list[str]) -> str:
    structure = gemmi.read_pdb_string("\n".join(lines))
    structure.setup_entities()
    return structure.make_mmcif_document().as_string()


REFUSED_STRUCTURES: dict[str, tuple[list[str] | bytes, tuple[str, ...]]] = {
    "empty": (b"", ("the file is empty",)),
    "no atoms": (["HEADER    NOTHING", "END"], ("there are no atoms",)),
    "header only": (["HEADER    NOTHING"], ("there are no atoms",)),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", ("an HTML page",)),
    "binary junk": (bytes(range(256)) * 40, ("binary data",)),
    "a pickle": (b"\x80\x04\x95junk", ("a Python pickle, which is never opened",)),
    "letters in a number": (changed(6, 30, " 21.ish "), ("line 7", "x coordinate", "'21.ish'")),
    "NaN": (changed(6, 38, "     nan"), ("line 7", "y coordinate is not finite")),
    "inf": (changed(6, 46, "    -inf"), ("line 7", "z coordinate is not finite")),
    "overflow": (changed(6, 30, "********"), ("line 7", "all asterisks")),
    "blank number": (changed(6, 30, "        "), ("line 7", "x coordinate is blank")),
    "wrong residue number": (changed(6, 22, " x-1"), ("line 7", "residue number is no number")),
    "coincident atoms": (
        [*PEPTIDE[:5], pdb_line("OXT", ALANINE["CB"], number=1), *PEPTIDE[5:]],
        ("line 5, atom CB in ALA 1 of chain A", "coincides with line 6, atom OXT"),
    ),
    "one far atom": (
        [*PEPTIDE, pdb_line("CA", (9_000, 0, 0), number=9)],
        ("line 21, atom CA in ALA 9", "lies far away", "5,000 Å"),
    ),
    "nm in a PDB": (scaled(0.1), ("neighbouring Cα is 0.36", "use --length-unit nm")),
    "Å taken for nm": (scaled(10), ("use --length-unit angstrom",)),
    "alpha carbons only": (PEPTIDE[1::5], ("only Cα is there", "needs all heavy atoms")),
    "unknown element": (
        [*PEPTIDE, pdb_line("X1", (3, 9, 1), residue="ALA", number=4, element="ZZ")],
        ("line 21, atom X1 in ALA 4", "unknown element"),
    ),
    "no protein": (
        [pdb_line("O", (3 * k, 0, 0), residue="HOH", number=k) for k in range(5)],
        ("there is no protein among 5 residues (HOH)",),
    ),
    "DNA only": (
        [pdb_line(name, (1.5 * k, 0, 0), residue="DA") for k, name in enumerate(("P", "C1'"))],
        ("there is no protein", "(DA)"),
    ),
    "other atoms in a model": (
        models(PEPTIDE, [*PEPTIDE[:-1], PEPTIDE[-1].replace("CB", "CG")]),
        ("model 2 has other atoms", "atom CG in ALA 4"),
    ),
    "fewer atoms in a model": (models(PEPTIDE, PEPTIDE[:-1]), ("model 2 has 19 atoms", "has 20")),
    "a model that does not end": (models(PEPTIDE)[:-1], ("line 1", "not closed by ENDMDL")),
    "cut gzip": (gzip.compress("\n".join(PEPTIDE).encode())[:-30], ("gzip data is cut",)),
    "cut mmCIF": (mmcif(PEPTIDE)[:-40].encode(), ()),
    "UTF-16": ("\n".join(PEPTIDE).encode("utf-16"), ("text in UTF-16",)),
    "a trajectory": (struct.pack(">i", 1995) + bytes(200), ("a surface needs a structure",)),
}
"""Name → content, and what the sentence says beside the file's name."""


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Return a function that writes lines, or bytes, to a file and returns its path."""

    def written(content: list[str] | bytes, name: str = "a.pdb") -> Path:
        path = tmp_path / name
        text = content if isinstance(content, bytes) else ("\n".join(content) + "\n").encode()
        path.write_bytes(text)
        return path

    return written


@pytest.mark.parametrize(("atoms", "said"), [(1, "there is 1 atom"), (9, "there are 9 atoms")])
def test_a_structure_of_hardly_any_atoms_is_noticed_and_not_forecast(
    write, tmp_path, capsys, atoms, said
):
    path = write(PEPTIDE[:atoms])
    told = answer(capsys, "inspect", "--for", "surface", path)
    assert told.code == 0
    assert f"a.pdb: {said} to use; a surface that moves needs at least 10" in told.out
    out = tmp_path / "out"
    check_refused(answer(capsys, "forecast", path, "--time", "1", "-o", out), said, "at least 10")
    assert not out.exists()


@pytest.mark.parametrize("name", REFUSED_STRUCTURES)
def test_a_structure_that_cannot_serve_is_refused(write, tmp_path, capsys, name):
    content, words = REFUSED_STRUCTURES[name]
    path = write(content, "a.pdb")
    before = path.read_bytes()
    check_refused(answer(capsys, "inspect", "--for", "surface", path), path.name, *words)
    out = tmp_path / "out"
    told = answer(capsys, "forecast", path, "--time", "1", "-o", out)
    # A forecast needs no whole file name where the atoms themselves are at fault.
    check_refused(told, *(word for word in words if "a surface needs" not in word))
    assert not out.exists()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.pdb"]


def numbered(number: str, start: int) -> list[str]:
    """Return an alanine whose residue number is written as it is given."""
    return [line[:22] + f"{number:>4}" + line[26:] for line in residue_lines(1, start=start)]


def mirrored() -> list[str]:
    flips = [place(line) * (1, 1, -1) for line in PEPTIDE]
    names = [line[12:16].strip() for line in PEPTIDE]
    numbers = [int(line[22:26]) for line in PEPTIDE]
    return [pdb_line(*one, number=n) for *one, n in zip(names, flips, numbers, strict=True)]


def ring(residues: int = 8) -> list[str]:
    """Return residues on a circle, the last of which is bonded to the first."""
    lines = []
    for k in range(residues):
        turn = 2 * np.pi * k / residues
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        for name, position in ALANINE.items():
            flat = matrix @ (np.array(position[:2]) - NEXT[:2] / 2 - (0, 4.4))
            lines.append(pdb_line(name, (*flat, position[2]), number=k + 1))
    return lines


def conformations(*labels: str) -> list[str]:
    """Return three residues, the middle one in several conformations; A has most occupancy."""
    occupancy = {"A": 0.6, "B": 0.4}
    middle = [residue_lines(2, altloc=label, occupancy=occupancy[label]) for label in labels]
    return [*residue_lines(1), *(line for part in middle for line in part), *residue_lines(3)]


SERVING_STRUCTURES: dict[str, tuple[list[str] | bytes, dict[str, int]]] = {
    "as it is": (PEPTIDE, {}),
    "CRLF": ("\r\n".join(PEPTIDE).encode(), {}),
    "BOM": (b"\xef\xbb\xbf" + "\n".join(PEPTIDE).encode(), {}),
    "Latin-1": ("\n".join(["REMARK   1 GEMESSEN IN TÜBINGEN", *PEPTIDE]).encode("latin-1"), {}),
    "gzip": (gzip.compress("\n".join(PEPTIDE).encode()), {}),
    "gzipped mmCIF": (gzip.compress(mmcif(PEPTIDE).encode()), {}),
    "no final newline": ("\n".join(PEPTIDE).encode(), {}),
    "missing CA": (PEPTIDE[:6] + PEPTIDE[7:], {"atoms-missing": 1, "alpha-carbons-missing": 1}),
    "blank elements": ([line[:76] for line in PEPTIDE], {"elements-guessed": 20}),
    "mirror image": (mirrored(), {"mirrored-residues": 4}),
    "six-digit serials": ([f"ATOM  {k + 99_995:<6}{x[12:]}" for k, x in enumerate(PEPTIDE)], {}),
    "hybrid-36 numbers": ([*numbered("9999", 1), *numbered("A000", 2)], {}),
    "insertion codes": (
        [*residue_lines(1), *residue_lines(1, start=2, code="A"), *residue_lines(2, start=3)],
        {},
    ),
    "a blank chain": (peptide_lines(4, chain=""), {}),
    "a chain that is listed twice": ([*PEPTIDE, *PEPTIDE], {"coincident-dropped": 20}),
    "a chain that repeats elsewhere": (
        [*PEPTIDE, *(line for k in range(1, 5) for line in residue_lines(k, start=k + 20))],
        {},
    ),
    "conformations": (conformations("A", "B"), {"altlocs-dropped": 5}),
    "conformations in another order": (conformations("B", "A"), {"altlocs-dropped": 5}),
    "two models": (models(PEPTIDE, PEPTIDE), {"one-model-used": 1}),
    "zero occupancy": (peptide_lines(2, occupancy=0.0), {"zero-occupancies": 10}),
    "hydrogens, water and ions": (
        [
            *PEPTIDE,
            pdb_line("H", (0.5, 0.9, 0.1), number=1),
            pdb_line("O", (20, 9, 9), residue="HOH", number=8),
            pdb_line("NA", (20, 20, 9), residue="NA", number=9, element="NA"),
        ],
        {"hydrogens-dropped": 1, "water-dropped": 1, "ions-dropped": 1},
    ),
    "another amino acid": (peptide_lines(2, residue="ALX"), {"nonstandard-residues": 2}),
    "a gap": ([*residue_lines(1), *residue_lines(9)], {"chain-breaks": 1}),
    "a cyclic chain": (ring(), {}),
}
"""Name → content, and the codes of the notices with their counts."""


@pytest.mark.parametrize("name", SERVING_STRUCTURES)
def test_an_odd_structure_serves_and_what_is_odd_is_counted(write, capsys, name):
    content, counts = SERVING_STRUCTURES[name]
    path = write(content, "odd.structure")
    told = answer(capsys, "inspect", "--for", "surface", "--json", path)
    assert told.code == 0, told.err
    (found,) = json.loads(told.out)
    noticed = {notice["code"]: notice["count"] for notice in found["notices"]}
    assert {code: noticed.get(code) for code in counts} == counts
    if not counts:
        assert not noticed.keys() - {"chain-breaks"}
    assert all(notice["place"].startswith("odd.structure") for notice in found["notices"])


@pytest.mark.parametrize("suffix", [".ent", ".pdbx", ".cif.gz", ".xtc", ""])
def test_the_content_decides_and_not_the_suffix(write, capsys, suffix):
    content = mmcif(PEPTIDE).encode()
    for packed in (content, gzip.compress(content), "\n".join(PEPTIDE).encode()):
        told = answer(capsys, "inspect", "--json", write(packed, f"a{suffix}"))
        assert json.loads(told.out)[0]["atoms"] == 20


def test_the_order_of_conformations_does_not_change_which_is_taken(write, capsys):
    from undula.io.structures import load_structure

    one, other = (
        load_structure(write(conformations(*labels), f"{labels[0]}.pdb"))
        for labels in (("A", "B"), ("B", "A"))
    )
    assert (one.positions == other.positions).all()


@pytest.fixture
def topology(write) -> Path:
    return write(PEPTIDE, "topology.pdb")


@pytest.fixture
def positions() -> np.ndarray:
    """Return rattling positions, Å, rounded as XTC rounds them."""
    still = np.array([place(line) for line in PEPTIDE])
    noise = 0.04 * np.random.default_rng(0).standard_normal((FRAMES, *still.shape))
    return np.round(still + 30 + noise, 2)


def xtc(path: Path, positions: np.ndarray, times: np.ndarray = TIMES, box: object = None) -> Path:
    with XTCTrajectoryFile(str(path), "w") as file:
        file.write((positions / 10).astype("f4"), time=times[: len(positions)], box=box)
    return path


def dcd(path: Path, positions: np.ndarray) -> Path:
    with DCDTrajectoryFile(str(path), "w") as file:
        file.write(positions.astype("f4"))
    return path


def trr(path: Path, positions: np.ndarray) -> Path:
    with TRRTrajectoryFile(str(path), "w") as file:
        steps = np.arange(len(positions), dtype="i4")
        boxes = np.zeros((len(positions), 3, 3), dtype="f4")
        file.write((positions / 10).astype("f4"), TIMES[: len(positions)], steps, boxes)
    return path


def overwritten(path: Path, start: int, content: bytes) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:start] + content + data[start + len(content) :])
    return path


def dcd_atoms(path: Path) -> int:
    """Return where a DCD file says how many atoms it has: behind the header and the titles."""
    titles = 92
    (length,) = struct.unpack_from("<i", path.read_bytes(), titles)
    return titles + length + 12


Damage = Callable[[Path, np.ndarray], Path]


def with_(positions: np.ndarray, frame: int, atom: int, value: float) -> np.ndarray:
    other = positions.copy()
    other[frame, atom] = value
    return other


def middle_overwritten(folder: Path, positions: np.ndarray) -> Path:
    path = xtc(folder / "a.xtc", positions)
    start = open_xtc(path).headers[5].start
    return overwritten(path, start + 110, b"\xff" * 64)


def header_claims(folder: Path, positions: np.ndarray, atoms: int) -> Path:
    return overwritten(xtc(folder / "a.xtc", positions), 4, struct.pack(">i", atoms))


REFUSED_TRAJECTORIES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "not there": (lambda folder, _: folder / "nowhere.xtc", ("such file",)),
    "empty": (lambda folder, _: _text(folder / "a.xtc", ""), ("the file is empty",)),
    "no frame": (lambda folder, x: _cut(xtc(folder / "a.xtc", x), 40), ("no whole frame",)),
    "one frame": (lambda folder, x: xtc(folder / "a.xtc", x[:1]), ("there is one frame",)),
    "another number of atoms": (
        lambda folder, x: xtc(folder / "a.xtc", x[:, :-1]),
        ("has 19 atoms", "has 20"),
    ),
    "a damaged middle": (middle_overwritten, ("frame 6",)),
    "2³⁰ atoms": (lambda folder, x: header_claims(folder, x, 2**30), ("no whole frame",)),
    "−5 atoms": (lambda folder, x: header_claims(folder, x, -5), ("no whole frame",)),
    "2³⁰ atoms (DCD)": (
        lambda folder, x: overwritten(
            dcd(folder / "a.dcd", x), dcd_atoms(folder / "a.dcd"), struct.pack("<i", 2**30)
        ),
        (),
    ),
    "NaN in frame 4": (
        lambda folder, x: dcd(folder / "a.dcd", with_(x, 3, 7, np.nan)),
        ("frame 4: a coordinate of atom 8 is not finite",),
    ),
    "inf in frame 5 (TRR)": (
        lambda folder, x: trr(folder / "a.trr", with_(x, 4, 2, np.inf)),
        ("frame 5: a coordinate of atom 3 is not finite",),
    ),
    "an atom that left": (
        lambda folder, x: dcd(folder / "a.dcd", with_(x, 6, 3, 90.0)),
        ("frame 7 is damaged (1 of 12 are)",),
    ),
    "another order of atoms": (
        lambda folder, x: xtc(folder / "a.xtc", x[:, ::-1]),
        ("is the order of the atoms the same?",),
    ),
    "frozen": (
        lambda folder, x: xtc(folder / "a.xtc", np.repeat(x[:1], FRAMES, axis=0)),
        ("all 12 frames are the same, nothing moves",),
    ),
    "exploded": (
        lambda folder, x: dcd(folder / "a.dcd", x * 1.6 ** np.arange(FRAMES)[:, None, None]),
        ("frame",),
    ),
    "exploded beyond all": (
        lambda folder, x: dcd(folder / "a.dcd", x * 10.0 ** np.arange(FRAMES)[:, None, None]),
        ("Å from the origin",),
    ),
    "times that never grow": (
        lambda folder, x: xtc(folder / "a.xtc", x, np.array([np.nan] * FRAMES, dtype="f4")),
        ("no frame is left",),
    ),
    "HTML": (lambda folder, _: _text(folder / "a.xtc", "<html>404</html>"), ("an HTML page",)),
    "gzip": (
        lambda folder, x: _packed(xtc(folder / "a.xtc", x)),
        ("a packed trajectory (XTC), unpack it first",),
    ),
}
"""Name → what writes the file, and what the sentence says beside its name."""


def _cut(path: Path, length: int) -> Path:
    path.write_bytes(path.read_bytes()[:length])
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _packed(path: Path) -> Path:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


@pytest.mark.parametrize("name", REFUSED_TRAJECTORIES)
def test_a_trajectory_that_cannot_serve_is_refused(topology, positions, tmp_path, capsys, name):
    damage, words = REFUSED_TRAJECTORIES[name]
    place = tmp_path / "runs"
    place.mkdir()
    path = damage(place, positions)
    before = snapshot(place)
    out = tmp_path / "out"
    words = (str(path), *words)
    told = answer(capsys, "inspect", "--for", "motion", path, "--topology", topology)
    check_refused(told, *words)
    for command in (["prepare"], ["prepare", "atoms"]):
        check_refused(answer(capsys, *command, topology, path, "-o", out), *words)
        assert not out.exists()
    assert snapshot(place) == before


def thermal(positions: np.ndarray) -> np.ndarray:
    """Return the frames so close to each other as 2 fs would have them."""
    return positions[:1] + 0.02 * (positions - positions[:1])


SERVING_TRAJECTORIES: dict[str, tuple[Damage, dict[str, int], str]] = {
    "as it is": (lambda folder, x: xtc(folder / "a.xtc", x), {}, ""),
    "cut": (
        lambda folder, x: _cut(xtc(folder / "a.xtc", x), 2000),
        {"file-cut": 1},
        "frames were used",
    ),
    "a tail": (
        lambda folder, x: _longer(xtc(folder / "a.xtc", x)),
        {"file-cut": 1},
        "350 bytes after 12 whole frames are no frame",
    ),
    "2³⁰ frames (DCD)": (
        lambda folder, x: overwritten(dcd(folder / "a.dcd", x), 8, struct.pack("<i", 2**30)),
        {"frame-count-differs": 1, "times-numbered": 12},
        "12",
    ),
    "repeated times": (
        lambda folder, x: xtc(folder / "a.xtc", x, TIMES[[0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]]),
        {"times-dropped": 2},
        "frame 7: 2 frames are not later",
    ),
    "one time": (
        lambda folder, x: xtc(folder / "a.xtc", x, 0 * TIMES),
        {"times-numbered": 12},
        "all 12 frames have the time 0 ps",
    ),
    "repeated frames": (
        lambda folder, x: xtc(folder / "a.xtc", x[[0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]]),
        {"frames-repeated": 2},
        "frame 3: 2 frames are the same as those before them",
    ),
    "fs for ps": (
        lambda folder, x: dcd_like(folder, thermal(x)),
        {"times-doubtful": 12},
        "are the times in fs",
    ),
    "ns for ps": (
        lambda folder, x: xtc(folder / "a.xtc", x, TIMES / 10_000),
        {"times-doubtful": 12},
        "faster than heat moves them",
    ),
    "a box that vanishes": (
        lambda folder, x: xtc(folder / "a.xtc", x, box=_boxes(vanishing=True)),
        {"box-dropped": 1},
        "1 of 12 frames have no box",
    ),
    "a box that changes": (lambda folder, x: xtc(folder / "a.xtc", x, box=_boxes()), {}, ""),
    "periodic images": (
        lambda folder, x: xtc(folder / "a.xtc", x % 20.0, box=_boxes(edge=2.0)),
        {},
        "",
    ),
    "models": (
        lambda folder, x: _text(folder / "a.pdb", "\n".join(models(*map(_lines, x)))),
        {"times-numbered": 12},
        "the file gives no times",
    ),
}
"""Name → what writes the file, the notices with their counts, and what they say."""


def dcd_like(folder: Path, positions: np.ndarray) -> Path:
    return trr(folder / "a.trr", positions)


def _lines(positions: np.ndarray) -> list[str]:
    names = [line[12:16].strip() for line in PEPTIDE]
    return [
        pdb_line(name, one, number=1 + k // 5)
        for k, (name, one) in enumerate(zip(names, positions, strict=True))
    ]


def _longer(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + b"x" * 350)
    return path


def _boxes(edge: float = 6.0, vanishing: bool = False) -> np.ndarray:
    grown = edge * (1 if edge == 2.0 else 1 + 0.001 * np.arange(FRAMES))
    boxes = (np.broadcast_to(grown, (FRAMES,))[:, None, None] * np.eye(3)).astype("f4")
    boxes[5] *= not vanishing
    return boxes


@pytest.mark.parametrize("name", SERVING_TRAJECTORIES)
def test_an_odd_trajectory_serves_and_what_is_odd_is_counted(
    topology, positions, tmp_path, capsys, name
):
    damage, counts, words = SERVING_TRAJECTORIES[name]
    place = tmp_path / "runs"
    place.mkdir()
    path = damage(place, positions)
    told = answer(capsys, "inspect", "--for", "motion", path, "--topology", topology, "--json")
    assert told.code == 0, told.err
    (found,) = json.loads(told.out)
    noticed = {notice["code"]: notice for notice in found["notices"]}
    assert {code: noticed[code]["count"] for code in noticed} == counts
    for notice in noticed.values():
        assert notice["place"].startswith(path.name)
    assert words in "".join(
        f"{notice['place']}: {notice['message']}" for notice in noticed.values()
    )
    strict = answer(capsys, "prepare", topology, path, "-o", tmp_path / "out", "--strict")
    if counts:
        check_refused(strict, path.name, "--strict takes no notice")
        assert not (tmp_path / "out").exists()


def fluid(**others: np.ndarray) -> Callable[[Path], Path]:
    """Return what writes a fluid in which some arrays are others."""
    return lambda folder: write_fluid(folder / "a.npz", *swinging(30, 10, seed=0), **others)


def _without(path: Path, key: str) -> Path:
    with np.load(path) as archive:
        kept = {name: archive[name] for name in archive.files if name != key}
    np.savez(path, **kept)
    return path


def _touching(folder: Path) -> Path:
    positions, velocities = swinging(30, 10, seed=0)
    return write_fluid(folder / "a.npz", 0.3 * positions, velocities)


def _still(folder: Path) -> Path:
    positions, velocities = swinging(30, 10, seed=0)
    return write_fluid(folder / "a.npz", positions[:1].repeat(30, axis=0), velocities)


REFUSED_FLUIDS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "a missing key": (lambda f: _without(fluid()(f), "box_nm"), ("there is no box_nm",)),
    "another dtype": (
        fluid(position_step=np.zeros((29, 8, 3))),
        ("position_step should hold integers",),
    ),
    "another shape": (
        fluid(position_step=np.zeros((29, 7, 3), dtype=np.int8)),
        ("do not belong together",),
    ),
    "NaN in the box": (
        fluid(box_nm=np.array([2.0, np.nan, 2.0])),
        ("box_nm should be positive",),
    ),
    "no time between frames": (fluid(frame_ps=np.float64(0)), ("frame_ps should be positive",)),
    "infinite time": (fluid(frame_ps=np.float64(np.inf)), ("frame_ps should be positive",)),
    "more velocities than frames": (
        fluid(velocity=np.zeros((31, 8, 3), dtype=np.int8)),
        ("31 frames of velocities for 30 frames",),
    ),
    "objects": (fluid(velocity=np.array([{}], dtype=object)), ()),
    "energies that are not finite": (
        fluid(potential_kj_mol=np.full(30, np.nan)),
        ("potential energies are not finite, first in frame 1",),
    ),
    "atoms that are no fluid": (_touching, ("neither argon nor water",)),
    "frozen": (_still, ("all 30 frames are the same",)),
    "cut": (lambda f: _cut(fluid()(f), 600), ()),
}


@pytest.mark.parametrize("name", REFUSED_FLUIDS)
def test_a_fluid_that_cannot_serve_is_refused(tmp_path, capsys, name):
    damage, words = REFUSED_FLUIDS[name]
    place = tmp_path / "runs"
    place.mkdir()
    path = damage(place)
    out = tmp_path / "out"
    check_refused(answer(capsys, "prepare", "atoms", path, "-o", out), str(path), *words)
    assert not out.exists()
    if name != "frozen":
        check_refused(answer(capsys, "inspect", "--for", "motion", path), str(path), *words)


def velocities_of(positions: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return velocities as heat at 300 K gives them, nm/ps."""
    return scale * 0.4 * np.random.default_rng(1).standard_normal(positions.shape)


REFUSED_VELOCITIES: dict[str, tuple[dict[str, np.ndarray], tuple[str, ...]]] = {
    "a missing key": ({"velocity_unit_nm_per_ps": np.float64(1)}, ("there is no velocity",)),
    "other atoms": (
        {"velocity": np.zeros((FRAMES, 3, 3)), "velocity_unit_nm_per_ps": np.float64(1)},
        ("velocity should be frames × 20 × 3",),
    ),
    "too many frames": (
        {"velocity": np.ones((FRAMES + 1, 20, 3)), "velocity_unit_nm_per_ps": np.float64(1)},
        ("does not belong to the 12 frames",),
    ),
    "NaN": (
        {
            "velocity": np.full((FRAMES, 20, 3), np.nan),
            "velocity_unit_nm_per_ps": np.float64(1),
        },
        ("velocity should hold finite real numbers",),
    ),
    "an infinite unit": (
        {"velocity": np.ones((FRAMES, 20, 3)), "velocity_unit_nm_per_ps": np.float64(np.inf)},
        ("should hold finite real numbers",),
    ),
    "text": (
        {"velocity": np.full((FRAMES, 20, 3), "x"), "velocity_unit_nm_per_ps": np.float64(1)},
        ("should hold finite real numbers",),
    ),
    "no velocities at all, but positions": (
        {
            "velocity": 30 + np.zeros((FRAMES, 20, 3)),
            "velocity_unit_nm_per_ps": np.float64(1),
        },
        ("K",),
    ),
    "in another unit": (
        {
            "velocity": velocities_of(np.zeros((FRAMES, 20, 3)), 10),
            "velocity_unit_nm_per_ps": np.float64(1),
        },
        ("K",),
    ),
}


@pytest.mark.parametrize("name", REFUSED_VELOCITIES)
def test_velocities_that_are_none_are_refused(topology, positions, tmp_path, capsys, name):
    arrays, words = REFUSED_VELOCITIES[name]
    run = xtc(tmp_path / "a.xtc", positions)
    np.savez(tmp_path / "v.npz", **arrays)
    out = tmp_path / "out"
    files = [topology, run, "--velocities", tmp_path / "v.npz"]
    check_refused(
        answer(capsys, "prepare", "atoms", *files, "-o", out), str(tmp_path / "v.npz"), *words
    )
    assert not out.exists()


def test_velocities_that_could_be_serve(topology, positions, tmp_path, capsys):
    run = xtc(tmp_path / "a.xtc", positions)
    unit = {"velocity_unit_nm_per_ps": np.float64(1)}
    np.savez(tmp_path / "v.npz", velocity=velocities_of(positions), **unit)
    files = [topology, run, "--velocities", tmp_path / "v.npz"]
    told = answer(capsys, "prepare", "atoms", *files, "-o", tmp_path / "out")
    assert told.code == 0, told.err
    assert "velocities of 12" in told.out
