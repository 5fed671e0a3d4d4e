"""Programs in forked processes, for tests and the soak: start, kill, exit status, output."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from utils.program import run_main


def start_child(work, environment: dict | None = None, output: Path | None = None) -> int:
    """Fork a process that does `work` as a program does: its id.

    Its output is discarded and its stderr is that of this program, or both go to the file `output`.
    """
    child = os.fork()
    if child == 0:
        try:
            os.environ.update(environment or {})
            torch.set_num_threads(1)
            if output:
                sys.stdout = sys.stderr = output.open("w", buffering=1, errors="backslashreplace")
                os.dup2(sys.stderr.fileno(), 2)
            else:
                sys.stdout = open(os.devnull, "w")
            os.dup2(sys.stdout.fileno(), 1)
            run_main(work)
        except SystemExit as done:
            os._exit(done.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)
    return child


def end_of(child: int, seconds: float = 60.0) -> int:
    """Exit status of a child, or minus the signal that ended it. Raises: TimeoutError, after killing it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("the child did not end")


def start_children(work, count: int, output: Path | None = None) -> list[int]:
    """Start `count` processes that form a process group as those of torchrun do."""
    if count == 1:
        return [start_child(work, output=output)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start_child(work, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        output and output.with_name(f"{output.name}.{rank}")) for rank in range(count)]


def in_child(work) -> int:
    """Exit status of a forked process that does `work`, or minus the signal that ended it."""
    return end_of(start_child(work))


def in_children(work, count: int) -> list[int]:
    """Exit statuses of `count` processes, see `start_children`."""
    return [end_of(child) for child in start_children(work, count)]
