"""How a program ends: exit status, one line for a mistake of the user, signals, several processes."""

import os
import sys

from utils.config import one_line
from utils.training.distributed import is_lost_peer, leave, rank_from_environment
from utils.training.signals import Stopped, handle, stop_at_once
from utils.training.terminal import Stream

NO_MEMORY = "out of memory", "can't allocate memory", "calculation overflowed"  # as torch says on a GPU or a CPU


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
