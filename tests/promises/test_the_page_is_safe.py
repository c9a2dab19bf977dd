"""The page: what comes from files is shown and never obeyed, and nothing is asked of any network.

Names with markup in them go the whole way: in a structure file, in its file name, in a trajectory's
and in notices, to the pages, the tables and the report.
"""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from tests.loopback import serving
from tests.motion.small_systems import argon, trained, window
from tests.surface.mixtures import LOCAL, bound, stirred
from tests.viz.test_page import until

from undula.cli.main import main
from undula.errors import Notice
from undula.io.structures import load_structure
from undula.motion.forecast import forecast_atoms
from undula.report.appendix import Appendix
from undula.report.latex import latex_text
from undula.report.table import Metric, Row, Table
from undula.surface.forecast import forecast
from undula.viz.atoms_export import atoms_page, export_atoms
from undula.viz.atoms_page import write_atoms_page
from undula.viz.export import export

IMAGE = "<img src=x onerror=document.title='stolen'>"
HOSTILE = f"</script>{IMAGE}<script>document.title='stolen'</script>\"'&amp;`${{1}}"
DIRECTIVES = {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}


class Elements(html.parser.HTMLParser):
    """The elements of a page, and everything that its attributes lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        self.handlers += [k for k, _ in attrs if k.startswith("on") or k == "style"]


def hostile_structure(path: Path, peptide: Path) -> Path:
    """Write a structure whose chain, residue number and notices carry markup."""
    document = gemmi.read_structure(str(peptide)).make_mmcif_document()
    table = document[0].find("_atom_site.", ["auth_asym_id", "label_asym_id"])
    for row in table:
        row[0] = row[1] = gemmi.cif.quote(HOSTILE.replace("'", ""))
    document.write_file(str(path))
    return path


@pytest.fixture(scope="module")
def pages(peptide, tmp_path_factory) -> dict[str, Path]:
    """Return a page of a surface and one of atoms, with markup wherever it may come in."""
    folder = tmp_path_factory.mktemp("pages")
    name = IMAGE.replace("/", "")[:200]
    structure = load_structure(hostile_structure(folder / f"{name}.cif", peptide[0]))
    notice = Notice(code="odd", message=HOSTILE, place=f"{name}.cif: chain {HOSTILE}")
    structure = replace(structure, notices=(*structure.notices, notice))
    export(forecast(structure, [5.0, 9.0], bound(stirred(LOCAL)), samples=2), folder / "surface")
    moving = forecast_atoms(window(argon(6)), [0.2, 0.8], trained(argon(6)), samples=2)
    system = moving.system
    labels = {key: np.full(6, HOSTILE) for key in ("atom_names", "residue_names", "chain_ids")}
    system = replace(system, structure=replace(system.structure, name=HOSTILE, **labels))
    moving = replace(moving, system=system, notices=(notice,))
    page, _ = atoms_page(moving)
    write_atoms_page(folder / "atoms.html", page)
    return {"surface": folder / "surface" / "index.html", "atoms": folder / "atoms.html"}


@pytest.fixture(params=["surface", "atoms"])
def page(request, pages) -> Path:
    return pages[request.param]


def test_names_add_no_element_and_no_attribute(page):
    text = page.read_text()
    found = Elements(text)
    assert "img" not in found.found
    assert found.found.count("script") == 4
    assert found.handlers == []
    assert set(found.addresses) <= {"data:,"}
    assert IMAGE not in text
    assert "onerror" in text  # it is shown


def test_the_policy_forbids_every_request(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    told = {one.split()[0]: one.split()[1:] for one in policy.split(";")}
    assert told.keys() == DIRECTIVES
    assert told["default-src"] == told["base-uri"] == told["form-action"] == ["'none'"]
    assert told["img-src"] == ["data:"]
    for directive in ("script-src", "style-src"):
        assert all(re.fullmatch(r"'sha256-[\w+/]+=*'", one) for one in told[directive])
    # It stands before anything that it could come too late for.
    before = text[: text.index("Content-Security-Policy")]
    assert Elements(before + '">').found == ["html", "head", "meta", "meta"]


def test_the_report_says_what_was_there(pages):
    report = json.loads((pages["surface"].parent / "report.json").read_text())
    assert HOSTILE in [notice["message"] for notice in report["notices"]]


def test_an_exported_forecast_of_atoms_names_files_by_us_alone(tmp_path):
    moving = forecast_atoms(window(argon(6)), [0.2, 0.8], trained(argon(6)), samples=2)
    structure = replace(moving.system.structure, name="../../up")
    moving = replace(moving, system=replace(moving.system, structure=structure))
    export_atoms(moving, tmp_path / "deep" / "out", formats=("html", "xtc", "pdb"))
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_terminal_is_told_nothing_that_it_obeys(tmp_path, peptide, capsys):
    path = tmp_path / "a\x1b]0;stolen\x07.pdb"
    text = peptide[0].read_bytes()
    path.write_bytes(text.replace(b"MET A", b"M\x1bT\x9b").replace(b"LEU A", b"L\x1b[A"))
    assert main(["inspect", str(path)]) in (0, 3)
    path.write_bytes(text.replace(b"ATOM      5", b"ATOM  \x1b[2J").replace(b"1.00", b"\x1b.00"))
    assert main(["inspect", str(path)]) == 3
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set("\x1b\x07\x9b")
    assert "\\x1b]0;stolen" in said.err


# ---- Tables --------------------------------------------------------------------------------


@pytest.fixture
def table() -> Table:
    small = Appendix(
        title=HOSTILE,
        key="a",
        headings=["row", "b|c"],
        rows=[[HOSTILE, "1\n| 2 |"]],
        sentences=[HOSTILE],
        values={},
    )
    return Table(
        title=HOSTILE,
        metrics=(Metric(key="iou", label="IoU|x"),),
        rows=(
            Row(
                name=f"{HOSTILE}|](javascript:1)\n![a](http://a/b)",
                kind="model",
                values={"iou": [0.5]},
            ),
            Row(name="copied", kind="trivial", values={"iou": [0.4]}),
        ),
        times_ps=(1.0,),
        appendices=(small,),
    )


def test_markdown_holds_no_markup_and_no_picture_of_others(table):
    text = table.markdown()
    assert not re.search(r"<[a-z/!]", text)
    assert not re.search(r"(?<!\\)\[", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 1 + 1 + 1
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows[:4]} == {4}
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows[4:]} == {3}


def test_latex_holds_no_command_of_others():
    text = latex_text(r"\input{/etc/passwd} \write18{rm} $ & % # _ ^ ~" + HOSTILE)
    assert not re.search(r"\\(input|write)", text)
    left = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]", "", text)
    assert not set(left) & set("\\&%$#_{}~^")


# ---- In a browser --------------------------------------------------------------------------


ATTEMPTS = """async (url) => {
  const made = (tag, more) =>
    document.body.append(Object.assign(document.createElement(tag), more));
  made("img", {src: url + "/image"});
  made("iframe", {src: url + "/frame"});
  made("script", {src: url + "/script"});
  made("script", {textContent: "window.stolen = true"});
  made("link", {rel: "stylesheet", href: url + "/style"});
  made("object", {data: url + "/object"});
  made("div", {innerHTML: "<img src=x onerror='window.stolen = true'>"});
  new Image().src = url + "/beacon";
  const refused = [];
  for (const attempt of [() => fetch(url + "/fetch"), () => import(url + "/module"),
      async () => new WebSocket(url.replace("http", "ws")), async () => new Worker(url + "/worker"),
      async () => { if (!navigator.sendBeacon(url + "/beacon")) throw Error("refused"); },
      async () => { const r = new XMLHttpRequest(); r.open("GET", url, false); r.send(); },
      async () => eval("1")]) {
    try { await attempt(); } catch (error) { refused.push(1); }
  }
  return refused.length;
}"""


@pytest.mark.browser
def test_it_asks_for_nothing_and_cannot_be_made_to(browser, page):
    with serving() as server:
        tab = browser.new_page(viewport={"width": 900, "height": 700}, reduced_motion="reduce")
        asked, dialogs = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.goto(page.as_uri())
        until(tab, "window.undula.ready && window.undula.draws > 0")
        assert set(asked) <= {page.as_uri(), "data:,"}
        assert tab.title() != "stolen"
        assert tab.locator("img, iframe, object, embed, link[rel=stylesheet]").count() == 0
        # Even a script in the page could not: only the policy stands between.
        assert tab.evaluate(ATTEMPTS, server.url) >= 4
        tab.wait_for_timeout(300)
        assert not tab.evaluate("window.stolen === true")
        assert dialogs == []
        assert server.asked == []
        tab.close()
