import json

import pytest

from undula.errors import InputError, Notice
from undula.notices import (
    add_to_report,
    from_json,
    merged,
    placed,
    refuse,
    tell,
    write_report,
)

CUT = Notice(code="file-cut", message="the file was cut", place="/far/away/a.xtc")
DROPPED = Notice(code="water-dropped", message="2 waters were dropped", count=2)


def test_places_name_the_file_without_its_folder(tmp_path):
    path = tmp_path / "a.xtc"
    inside = Notice(code="x", message="y", place=f"{path}: frame 3")
    elsewhere = Notice(code="x", message="y", place="5 ps")
    found = [notice.place for notice in placed([DROPPED, inside, elsewhere], path)]
    assert found == ["a.xtc", "a.xtc: frame 3", "5 ps"]


def test_only_strict_refuses_and_says_how_many_more_there_are():
    refuse([CUT, DROPPED], strict=False)
    refuse([], strict=True)
    with pytest.raises(InputError, match=r"^/far/away/a\.xtc: the file was cut; --strict"):
        refuse([CUT, CUT], strict=True)
    with pytest.raises(InputError, match=r"the file was cut \(and 1 more\); --strict"):
        refuse([CUT, DROPPED, CUT], strict=True)


def test_equal_notices_are_told_once_and_in_order(capsys):
    assert merged([DROPPED, CUT, DROPPED]) == [DROPPED, CUT]
    tell([DROPPED, CUT, DROPPED])
    assert capsys.readouterr().err.splitlines() == [
        "notice: 2 waters were dropped",
        "notice: /far/away/a.xtc: the file was cut",
    ]


def test_a_report_keeps_notices_and_a_later_part_replaces_itself(tmp_path):
    write_report(tmp_path, [DROPPED, DROPPED], atoms=3)
    add_to_report(tmp_path, "evaluation", [CUT], frames=2)
    add_to_report(tmp_path, "evaluation", [], frames=4)
    report = json.loads((tmp_path / "report.json").read_text())
    assert from_json(report["notices"]) == [DROPPED]
    assert report["atoms"] == 3
    assert report["evaluation"] == {"frames": 4, "notices": []}


def test_a_damaged_report_is_refused_and_not_written_over(tmp_path):
    (tmp_path / "report.json").write_text("[1]")
    with pytest.raises(InputError, match=r"report\.json is damaged"):
        add_to_report(tmp_path, "evaluation", [])
    assert (tmp_path / "report.json").read_text() == "[1]"


@pytest.mark.parametrize("described", [[{"code": "x"}], [3], [{**CUT.as_dict(), "more": 1}]])
def test_what_is_stored_as_notices_but_is_none_is_refused(described):
    with pytest.raises(TypeError, match="a notice has code, message, count, place"):
        from_json(described)
