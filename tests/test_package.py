import resource
import subprocess
import sys
from contextlib import suppress

import pytest

import undula
from undula.cli.main import VERBS, main


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_undula_loads_neither_torch_nor_numpy():
    found = python("import sys, undula; print([m for m in ('torch', 'numpy') if m in sys.modules])")
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in undula.__all__:
        assert getattr(undula, name) is not None
    assert set(undula.__all__) <= set(dir(undula))
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        undula.forcast  # noqa: B018


def test_help_answers_at_once_and_loads_no_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = python(
        "import sys; from undula.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'lightning', 'numba') if m in sys.modules])"
    )
    assert "usage: undula COMMAND" in found.stdout
    assert found.stdout.strip().endswith("[]")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of a processor, so that a busy machine does not fail it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["forcast"]) == 2
    assert "did you mean forecast?" in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == undula.__version__


@pytest.mark.parametrize("verb", list(VERBS))
def test_the_help_of_a_command_says_what_it_takes_in_words(verb, capsys):
    with suppress(SystemExit):
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: undula {verb}")
    assert " object at " not in said
    assert "<function" not in said
