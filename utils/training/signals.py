"""Ctrl-C, SIGTERM and SIGHUP: a run stops after saving, with the exit status that the shell expects."""

import contextlib
import os
import signal
import threading
from types import SimpleNamespace

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


def stop_at_once(number: int, frame) -> None:
    raise Stopped(number)


def handle(handler) -> dict:
    """Install `handler` for the signals, in the main thread only: the handlers before, by signal."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # by nohup
    return {number: signal.signal(number, handler) for number in HANDLED if number not in ignored}


@contextlib.contextmanager
def deferred():
    """Context in which a first signal only sets `number` (0: none); the caller reads it and stops after saving.

    A second signal raises `Stopped` at once, unless it is SIGHUP, which a closed terminal sends twice. A request that
    the caller never read raises `Stopped` at the end.
    """
    request = SimpleNamespace(number=0)

    def note(number: int, frame) -> None:
        if request.number and number != signal.SIGHUP:
            raise Stopped(number)
        request.number = request.number or number
        with contextlib.suppress(OSError):  # of a pipe without a reader; print is not safe here
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    before = handle(note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.number:
        raise Stopped(request.number)
