import io
import pickle
import zipfile

import numpy as np
import pytest

from undula.errors import InputError
from undula.io.archives import ArchiveLimits
from undula.io.arrays import load_archive, load_array


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, one=np.arange(6).reshape(2, 3), two=np.float64(0.5), none=np.zeros((0, 3))
    )
    return path


def member(content: bytes, tmp_path, name="one.npy"):
    path = tmp_path / "b.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(name, content)
    return path


def npy(header: str, body: bytes = b"") -> bytes:
    """Return an array whose header says anything."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def test_an_archive_is_read_as_numpy_reads_it(archive):
    found = load_archive(archive)
    with np.load(archive) as expected:
        assert found.keys() == set(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(found[name], expected[name])
            assert found[name].dtype == expected[name].dtype


def test_columns_first_is_read_too(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    np.testing.assert_array_equal(
        load_archive(tmp_path / "a.npz")["one"], np.arange(6.0).reshape(2, 3)
    )


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1073741824,)}", "promises 1073741824"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "promises -1"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (2, -3, -1)}", "promises 6 numbers"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "pickled objects"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (2**70,)}", "no plain array"),
        ("{'descr': '<f8', 'shape': (1,)}", "no plain array"),
        ("(" * 100, "no plain array"),
        ("__import__('os').abort()", "no plain array"),
        ("'''", "no plain array"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, header, said):
    with pytest.raises(InputError, match=said) as caught:
        load_archive(member(npy(header, b"\0" * 48), tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "a.npy").write_bytes(npy(header, b"\0" * 48))
    with pytest.raises(InputError, match=r"a\.npy"):
        load_array(tmp_path / "a.npy")


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("one.npy", bytes(50_000_000))
    assert (tmp_path / "b.npz").stat().st_size < 60_000
    with pytest.raises(InputError, match="would grow from"):
        load_archive(tmp_path / "b.npz")


def test_all_arrays_together_are_limited(archive):
    with pytest.raises(InputError, match="would unpack to"):
        load_archive(archive, ArchiveLimits(total=100))


def test_what_is_no_array_is_refused(tmp_path):
    for content, name in ((b"text", "one.npy"), (b"text", "notes.txt"), (b"", "one.npy")):
        with pytest.raises(InputError, match=r"b\.npz"):
            load_archive(member(content, tmp_path, name))


def test_pickles_are_never_opened(tmp_path):
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="never opened"):
        load_archive(member(file.getvalue(), tmp_path))
    for content in (file.getvalue(), pickle.dumps({}), b""):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npy is damaged"):
            load_array(tmp_path / "a.npy")
    with pytest.raises(InputError, match="is missing"):
        load_array(tmp_path / "none.npy")


def test_an_array_is_mapped_and_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3.0))
    assert not load_array(tmp_path / "a.npy").flags.owndata


def test_a_file_that_was_cut_or_lengthened_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(300.0))
    content = (tmp_path / "a.npy").read_bytes()
    for other in (content[:-8], content + b"tail"):
        (tmp_path / "a.npy").write_bytes(other)
        with pytest.raises(InputError, match=r"a\.npy is damaged"):
            load_array(tmp_path / "a.npy")
