import io

from undula.errors import Notice
from undula.learn.progress import BarProgress, LineProgress, SilentProgress, progress_on


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_speaks_at_once_then_once_a_minute_and_at_the_end():
    now, stream = [0.0], io.StringIO()
    progress = LineProgress(stream, clock=lambda: now[0])
    progress.started(0, 100)
    for step in range(1, 61):
        now[0] += 5.0
        progress.advanced(step, 0.25)
    progress.stopped()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 0/100"
    assert lines[1] == "step 12/100, loss 0.25, 7 min left"
    assert len(lines) == 1 + 5 + 1
    assert lines[-1].startswith("step 60/100")


def test_shows_measures_and_says_when_one_is_not_finite():
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.started(0, 10)
    progress.evaluated(5, {"iou": 0.71234, "chamfer": None})
    progress.advanced(10, 1.0)
    progress.stopped()
    assert stream.getvalue().splitlines()[-1] == (
        "step 10/10, loss 1, iou 0.7123, chamfer not finite (at step 5)"
    )


def test_a_notice_is_written_at_once():
    stream = io.StringIO()
    LineProgress(stream).noticed(Notice(code="a-code", message="something odd", place="here"))
    assert stream.getvalue() == "here: something odd\n"


def test_draws_a_bar_on_a_terminal():
    stream = Terminal()
    progress = progress_on(stream)
    assert isinstance(progress, BarProgress)
    progress.started(0, 10)
    progress.noticed(Notice(code="a-code", message="[odd] markup"))
    progress.advanced(10, 0.5)
    progress.evaluated(10, {"iou": 0.5})
    progress.stopped()
    assert "10/10" in stream.getvalue()
    assert "[odd] markup" in stream.getvalue()


def test_writes_lines_elsewhere_and_nothing_without_a_stream():
    assert isinstance(progress_on(io.StringIO()), LineProgress)
    assert isinstance(progress_on(None), SilentProgress)
