"""How a program ends and prints: exit status, one line for a mistake of the user, signals, several processes.

A closed output does not end it, and names in files cannot control a terminal.
"""

import contextlib
import os
import re
import signal
import sys
import threading
from types import SimpleNamespace

from utils.training.distributed import is_lost_peer, leave, rank_from_environment

NO_MEMORY = "out of memory", "can't allocate memory", "calculation overflowed"  # as torch says on a GPU or a CPU
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CURSOR_MOVES = re.compile("\n*(\x1b\\[A)*")  # of a progress bar


def run_main(main) -> None:
    """Run a program: a user's mistake is one line on stderr and exit status 2, not a traceback.

    Ctrl-C, SIGTERM and SIGHUP end it with exit status 130, 143 and 129. COST_TRACEBACK=1 shows the traceback of an
    error. Of several processes the first one prints; the others print errors only. When the reader of the output ends
    (`| head`) the work continues; when the output cannot be written (full disk), the exit status is 2 at the end.
    """
    handle(stop_at_once)
    rank = rank_from_environment()
    streams, who = (sys.stdout, sys.stderr), f"process {rank}: " if rank else ""
    sys.stdout, sys.stderr = output, errors = [Stream(stream) for stream in streams]
    if rank:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        status = main()
        leave()
        output.flush()
        if output.error and not isinstance(output.error, BrokenPipeError):
            raise OSError(output.error.errno, output.error.strerror, "standard output")
        sys.exit(status)
    except Stopped as stopped:
        print(f"{who}{stopped}; the same command resumes a run from its saved state", file=errors)
        sys.exit(stopped.exit_status)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        message, unexpected = one_line(error), isinstance(error, RuntimeError)
        if unexpected and is_lost_peer(error):
            print(f"{who}error: another process ended ({message[:100]})", file=errors)
            sys.exit(1)
        if isinstance(error, MemoryError) or unexpected and any(words in message for words in NO_MEMORY):
            unexpected, message = False, (f"not enough memory ({message}); choose a smaller --batch_size, "
                                          "--val_batch_size or --sample_batch, a smaller network or a smaller field")
        if unexpected or os.environ.get("COST_TRACEBACK"):
            raise
        print(f"{who}error: {message}", file=errors)
        sys.exit(2)
    finally:
        output.flush()
        errors.flush()
        sys.stdout, sys.stderr = streams  # for the traceback of an unexpected error


def printable(text: str) -> str:
    r"""The text with its control characters written out, as \x1b; line breaks and tabs stay."""
    return CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def one_line(message) -> str:
    """A message without line breaks and control characters."""
    return printable(" ".join(str(message).splitlines()))


class Stream:
    """Standard output or error that discards text after a write error, and does not end the program.

    error: the first error, or None: BrokenPipeError where the reader has ended (`| head`), another OSError where a disk
    is full or a terminal is closed.
    """

    def __init__(self, stream):
        self._stream, self.error = stream, None

    def write(self, text: str) -> int:
        start = 1 if text.startswith("\r") else 0  # of a progress bar
        shown = text if CURSOR_MOVES.fullmatch(text) else text[:start] + printable(text[start:])
        self._attempt(self._stream.write, shown)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def _attempt(self, action, *arguments) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self.error = self.error or error
            with contextlib.suppress(OSError):  # buffered text is discarded at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


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
