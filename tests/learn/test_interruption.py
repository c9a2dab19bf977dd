import signal
import threading

import pytest

from undula.learn.interruption import Interrupted, Interruption, StopNow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_remembers_a_signal_and_gives_the_handlers_back(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        signal.raise_signal(number)
        assert interruption.signal_number == number
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_the_second_signal_works_as_usual():
    # Shells start what runs in their background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_stops_at_once_where_that_is_allowed():
    with Interruption() as interruption:
        with pytest.raises(StopNow), interruption.at_once():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StopNow), interruption.at_once():
            pytest.fail("the signal came before")


def test_hears_nothing_outside_the_main_thread():
    heard = []

    def work():
        with Interruption() as interruption:
            heard.append(interruption.signal_number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [None]


def test_the_exit_code_is_that_of_the_signal():
    assert Interrupted("stopped", signal.SIGINT).exit_code == 130
    assert Interrupted("stopped", signal.SIGTERM).exit_code == 143
