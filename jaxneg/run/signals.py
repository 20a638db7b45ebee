"""SIGTERM and SIGINT: an exception where nothing can be lost, a note where there is something to save first."""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """The process was told to stop. `code` is the exit code that launchers know: 128 + the signal's number."""

    def __init__(self, number: int, where: str = ""):
        self.number, self.where = signal.Signals(number), where
        self.code = 128 + number
        super().__init__(f"stopped by {self.number.name}{where}")


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within, both signals raise Stopped. Without effect outside the main thread, which alone gets signals."""
    with _handled(_raise):
        yield


@contextlib.contextmanager
def noted() -> Iterator[list[int]]:
    """Within, the first signal is only noted in the list, for the caller to act on; a second one raises Stopped."""
    received: list[int] = []

    def note(number, frame):
        if received:
            _raise(number, frame)
        received.append(number)

    with _handled(note):
        yield received


def _raise(number, frame):
    raise Stopped(number)


@contextlib.contextmanager
def _handled(handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)
