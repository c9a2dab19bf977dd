import hashlib
import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest

from undula.errors import InputError, MachineError, UsageError
from undula.io.archives import ArchiveLimits, archive_members, extract

TEXT = b"ATOM of a protein\n" * 50


@pytest.fixture
def archive(tmp_path):
    return packed(tmp_path, {"a/one.pdb": TEXT, "a/two.xtc": b"x" * 3000, "a/": b"", "notes": b""})


def packed(folder, members, method=zipfile.ZIP_DEFLATED):
    path = folder / "some.zip"
    with zipfile.ZipFile(path, "w", method) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_the_wanted_members_are_unpacked_and_only_where_we_say(archive, tmp_path):
    target = tmp_path / "out" / "deep" / "ours.pdb"
    assert extract(archive, {"a/one.pdb": target}) == {
        "a/one.pdb": hashlib.sha256(TEXT).hexdigest()
    }
    assert target.read_bytes() == TEXT
    assert tree(tmp_path) == ["out/deep/ours.pdb", "some.zip"]


def test_members_are_listed_without_folders(archive):
    assert archive_members(archive) == ("a/one.pdb", "a/two.xtc", "notes")


def test_wanting_nothing_writes_nothing(archive, tmp_path):
    assert extract(archive, {}) == {}
    assert tree(tmp_path) == ["some.zip"]


def test_a_member_that_is_not_there_is_named_with_some_that_are(archive, tmp_path):
    with pytest.raises(InputError, match=r"has no c\.pdb; it holds a/one\.pdb, a/two\.xtc, notes"):
        extract(archive, {"c.pdb": tmp_path / "c"})


@pytest.mark.parametrize(
    "name", ["../up", "a/../../up", "/etc/up", "C:/up", "..\\up", "bell\a", "a\nb"]
)
def test_an_archive_with_a_name_that_leaves_the_folder_is_refused_whole(tmp_path, name):
    archive = packed(tmp_path, {"good": TEXT, name: b"bad"})
    with pytest.raises(InputError, match="unsafe: the name of its member"):
        extract(archive, {"good": tmp_path / "out" / "good"})
    assert tree(tmp_path) == ["some.zip"]


def test_a_name_with_a_zero_byte_is_not_cut_in_silence(tmp_path):
    archive = packed(tmp_path, {"good": TEXT, "twoXend": b"bad"})
    archive.write_bytes(archive.read_bytes().replace(b"twoXend", b"two\0end"))
    with pytest.raises(InputError, match="the name of its member"):
        archive_members(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = tmp_path / "some.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good", TEXT)
        odd = zipfile.ZipInfo("odd")
        odd.external_attr = (kind | 0o777) << 16
        opened.writestr(odd, "/etc/passwd")
    with pytest.raises(InputError, match="'odd' is a link or a device"):
        extract(archive, {"good": tmp_path / "good"})
    assert tree(tmp_path) == ["some.zip"]


def test_two_members_of_one_name_are_refused(tmp_path):
    archive = packed(tmp_path, {"good": TEXT, "gooX": b"other"})
    archive.write_bytes(archive.read_bytes().replace(b"gooX", b"good"))
    with pytest.raises(InputError, match="holds 'good' twice"):
        archive_members(archive)


def test_a_bomb_is_refused_before_anything_is_written(tmp_path):
    archive = packed(tmp_path, {"good": TEXT, "bomb": bytes(20_000_000)})
    assert archive.stat().st_size < 25_000
    with pytest.raises(InputError, match="would grow from"):
        extract(archive, {"good": tmp_path / "good", "bomb": tmp_path / "bomb"})
    assert tree(tmp_path) == ["some.zip"]


def test_a_bomb_that_nobody_wants_does_no_harm(tmp_path):
    archive = packed(tmp_path, {"good": TEXT, "bomb": bytes(20_000_000)})
    extract(archive, {"good": tmp_path / "good"})
    assert tree(tmp_path) == ["good", "some.zip"]


def test_a_member_that_lies_about_its_size_is_found_damaged(tmp_path):
    archive = packed(tmp_path, {"good": bytes(20_000_000)})
    content = archive.read_bytes().replace(struct.pack("<L", 20_000_000), struct.pack("<L", 100))
    archive.write_bytes(content)
    with pytest.raises(InputError, match="not a whole zip archive"):
        extract(archive, {"good": tmp_path / "out"})
    assert tree(tmp_path) == ["some.zip"]


def test_members_that_overlap_are_refused(tmp_path):
    path = packed(tmp_path, {"a": b"x" * 3000, "b": b"y" * 3000}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"overlap|not a whole zip|differ"):
        extract(path, {"a": tmp_path / "a", "b": tmp_path / "b"})


def test_the_total_is_limited(archive, tmp_path):
    wanted = {"a/one.pdb": tmp_path / "1", "a/two.xtc": tmp_path / "2"}
    with pytest.raises(InputError, match="would unpack to 3900 bytes, more than 3899"):
        extract(archive, wanted, ArchiveLimits(total=3899))
    assert set(extract(archive, wanted, ArchiveLimits(total=3900))) == set(wanted)


def test_a_long_table_of_contents_is_refused_before_it_is_read(archive):
    with pytest.raises(InputError, match="table of contents has 209 bytes, more than 208"):
        archive_members(archive, ArchiveLimits(directory=208))


def test_the_table_of_a_large_archive_is_measured_too(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    archive = packed(tmp_path, {"a": b"", "b": b"", "c": b""})
    assert b"PK\x06\x06" in archive.read_bytes()
    assert archive_members(archive) == ("a", "b", "c")
    with pytest.raises(InputError, match="table of contents has 141 bytes, more than 140"):
        archive_members(archive, ArchiveLimits(directory=140))


@pytest.mark.parametrize("part", [0, 30, 200, -1])
def test_a_cut_archive_is_an_input_error(archive, tmp_path, part):
    archive.write_bytes(archive.read_bytes()[:part])
    with pytest.raises(InputError, match="not a whole zip archive"):
        extract(archive, {"a/one.pdb": tmp_path / "out"})
    assert tree(tmp_path) == ["some.zip"]


def test_a_flipped_byte_is_found_and_nothing_is_left(tmp_path):
    archive = packed(tmp_path, {"a": TEXT}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match="not a whole zip archive"):
        extract(archive, {"a": tmp_path / "out"})
    assert tree(tmp_path) == ["some.zip"]


def test_an_encrypted_member_is_named(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    at = content.find(b"PK\x01\x02")
    content[at + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"'a/one\.pdb' is encrypted"):
        archive_members(archive)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.zip is missing"):
        archive_members(tmp_path / "none.zip")


def test_too_little_space_is_a_machine_error(archive, tmp_path, monkeypatch):
    full = SimpleNamespace(free=7)
    monkeypatch.setattr("undula.io.archives.shutil.disk_usage", lambda _: full)
    with pytest.raises(MachineError, match="room for 7"):
        extract(archive, {"a/one.pdb": tmp_path / "out"})


@pytest.mark.parametrize("key", ["total", "ratio", "directory"])
def test_impossible_limits_are_named(key):
    with pytest.raises(UsageError, match=key):
        ArchiveLimits(**{key: -1.0 if key == "ratio" else -1})
