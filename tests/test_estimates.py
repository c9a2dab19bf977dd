import resource
import subprocess
import sys

import pytest
import torch

from undula import estimates
from undula.errors import MachineError, UsageError
from undula.estimates import (
    Estimate,
    asked_bytes,
    available_bytes,
    check_fits,
    first_that_fits,
    memory_limit,
    memory_size,
    ran_out,
    resident_bytes,
    with_less,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 2**32), ("1.5 GB", 1.5e9), ("300MiB", 300 * 2**20), ("7 mb", 7e6), (".5kib", 512)],
)
def test_sizes_have_units_of_both_kinds(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "4", "GiB", "4 parsecs", "-1GiB", "0GB", "1e3MB", "nanGB"])
def test_what_is_no_size_gets_one_sentence(text):
    with pytest.raises(UsageError, match="MiB, GiB, MB or GB"):
        memory_size(text)


def test_a_limit_may_be_bytes_or_a_text_or_nothing():
    assert [asked_bytes(limit) for limit in (5, "1GiB", None)] == [5, 2**30, None]
    with pytest.raises(UsageError, match="positive"):
        asked_bytes(0)


def test_an_estimate_reads_like_a_sentence():
    assert str(Estimate(memory_bytes=900 * 2**20, seconds=0.2)) == "900 MiB of memory and 1 s"
    assert str(Estimate(memory_bytes=3 * 2**29, seconds=600.0)) == "1.5 GiB of memory and 10 min"
    assert str(Estimate(memory_bytes=2**33, seconds=7200.0)) == "8 GiB of memory and 2 h"


@pytest.mark.parametrize(("asked", "limit"), [(1, 1), (1000, 1000), (2**60, 1000), (None, 1000)])
def test_the_limit_is_never_more_than_there_is(monkeypatch, asked, limit):
    monkeypatch.setattr(estimates, "available_bytes", lambda: 1000)
    assert memory_limit(asked) == limit


def test_this_machine_says_how_much_it_has():
    assert memory_limit(1) == 1
    assert 2**20 < resident_bytes() < available_bytes() < 2**60


@pytest.mark.parametrize(("readings", "free"), [((700, 90, None), 90), ((None, -5, 3), 0)])
def test_the_scarcest_of_three_readings_counts(monkeypatch, readings, free):
    for name, size in zip(("_machine_free", "_group_free", "_address_free"), readings, strict=True):
        monkeypatch.setattr(estimates, name, lambda size=size: size)
    monkeypatch.setattr(estimates, "resident_bytes", lambda: 1_000)
    assert available_bytes() == 1_000 + free


def group(folder, limit, used, inactive, names=("max", "current", "inactive_file")):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
    (folder / f"memory.{names[1]}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {inactive}\n")


def test_the_tightest_control_group_counts(tmp_path):
    member = tmp_path / "cgroup"
    member.write_text("0::/outer/inner\n")
    root = tmp_path / "sys"
    group(root / "outer", 10_000, 4000, 500)
    group(root / "outer" / "inner", "max", 4000, 500)
    assert estimates._group_free(root, member) == 6500
    group(root / "outer" / "inner", 5000, 4000, 100)
    assert estimates._group_free(root, member) == 1100


def test_control_groups_of_the_first_version_count_too(tmp_path):
    member = tmp_path / "cgroup"
    member.write_text("4:cpu,cpuacct:/x\n7:memory:/x\n")
    names = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
    group(tmp_path / "sys" / "memory" / "x", 9000, 1000, 200, names)
    assert estimates._group_free(tmp_path / "sys", member) == 8200
    group(tmp_path / "sys" / "memory" / "x", 2**63 - 4096, 1000, 200, names)
    assert estimates._group_free(tmp_path / "sys", member) is None


def test_no_control_group_is_no_limit(tmp_path):
    assert estimates._group_free(tmp_path, tmp_path / "none") is None


def test_the_address_space_that_is_allowed_counts():
    code = (
        "import resource, undula.estimates as e; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); print(e.available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 2**29
    assert 0 < int(done.stdout) < 2**29


def test_what_does_not_fit_is_refused_with_what_does():
    size = Estimate(memory_bytes=2**32, seconds=1.0)
    check_fits(size, 2**32, "it", "")
    with pytest.raises(
        MachineError, match=r"^it takes about 4 GiB of memory, 2 GiB are allowed; x$"
    ):
        check_fits(size, 2**31, "it", "x")


def test_the_first_size_that_fits_is_the_best():
    assert first_that_fits([5, 4, 3, 2], lambda n: 10.0 * n, 35.0) == 3
    assert first_that_fits([5, 4], lambda n: 10.0 * n, 35.0) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_the_work_is_done_once_more_in_smaller_parts(error):
    def work():
        raise error

    assert ran_out(error)
    assert with_less(work, lambda: "smaller", str) == "smaller"
    with pytest.raises(MachineError, match=r"^that fits$"):
        with_less(work, work, lambda: "that fits")


def test_other_errors_are_not_about_memory():
    def work():
        raise RuntimeError("shape '[2]' is invalid")

    with pytest.raises(RuntimeError, match="shape"):
        with_less(work, lambda: "never", str)
    assert not ran_out(ValueError("out of memory"))


def test_torch_runs_out_of_memory_in_the_way_that_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert ran_out(caught.value)
