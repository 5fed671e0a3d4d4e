"""Ctrl-C, SIGTERM and SIGHUP: a run stops where nothing is lost, with the exit status that the shell expects."""

import contextlib
import os
import signal
import threading
from dataclasses import dataclass

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The user or the system asked the program to stop."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


@dataclass
class StopRequest:
    """The signal that came, 0 while none did."""

    number: int = 0


def stop_at_once(number: int, frame) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raises: TimeoutError once it has lasted so long, wherever it waits. Only the main thread can end it."""
    def end(number: int, frame) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} seconds")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def handle(handler) -> dict:
    """Let `handler` answer the signals; gives what answered before. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # by nohup
    return {number: signal.signal(number, handler) for number in HANDLED if number not in ignored}


@contextlib.contextmanager
def deferred():
    """While it lasts, a first signal is only noted: the caller looks at the request and stops where it can go on later.

    A second one raises `Stopped` at once, unless it is SIGHUP, which a closed terminal sends twice; so does the first
    one when the caller is done and never looked.
    """
    request = StopRequest()

    def note(number: int, frame) -> None:
        if request.number and number != signal.SIGHUP:
            raise Stopped(number)
        request.number = request.number or number
        with contextlib.suppress(OSError):  # the reader of a pipe may have been stopped too; print is not safe here
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    before = handle(note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.number:
        raise Stopped(request.number)
