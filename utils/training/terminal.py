"""Printed text: a closed output does not end the program, and names in files cannot control a terminal."""

import contextlib
import os
import re

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
CURSOR_MOVES = re.compile("\n*(\x1b\\[A)*")  # of a progress bar


def printable(text: str) -> str:
    r"""The text with its control characters written out, as \x1b; line breaks and tabs stay."""
    return CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


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
