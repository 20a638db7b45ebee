"""SIGTERM and SIGINT as exceptions and as notes."""

import os
import signal
import threading

import pytest

from jaxneg.run import signals


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_raised(number, code):
    before = signal.getsignal(number)
    with pytest.raises(signals.Stopped, match=f"stopped by {number.name}") as stopped, signals.raised():
        os.kill(os.getpid(), number)
        signal.pause()
    assert stopped.value.code == code and isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before


def test_the_first_signal_is_noted_and_the_second_raised():
    with pytest.raises(signals.Stopped, match="SIGINT"), signals.noted() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        while not received:
            pass
        assert received == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


def test_other_threads_are_let_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with signals.raised(), signals.noted() as received:
            inside.append((signal.getsignal(signal.SIGTERM), received))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, [])]
