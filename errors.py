"""The exception that means "the user can mend this", and how commands end with it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

# What a file system says of a path that somebody gave; anything else would be a fault of ours.
_THEIRS = {
    getattr(errno, f"E{name}")
    for name in "ACCES PERM ROFS NOSPC DQUOT NOENT NOTDIR ISDIR EXIST NAMETOOLONG LOOP FBIG IO STALE".split()
}


class UserError(Exception):
    """A fault in what the user gave: what, where, and what to do, in plain words.

    Commands print the message without a traceback and end with exit code 2. Several problems found together are one
    error with a line each.
    """


class ProcessError(UserError):
    """A `UserError` that one of several processes may come upon alone, and then says so itself."""


def show_any_text() -> None:
    """From now on standard output shows a question mark for what its encoding lacks: a dot between figures, where the
    locale is C, or a file's name that is no text."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no encoding
        sys.stdout.reconfigure(errors="replace")


def notice(text: str) -> None:
    """A line that a person should read and that ends nothing; of several processes, the first one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"headrace: {text}", file=sys.stderr, flush=True)


def run_command(main: Callable[[], int]) -> int:
    """Runs a command's `main` and turns a `UserError` into plain lines and exit code 2, what the file system says of
    a path as well; Ctrl-C into 130.

    Of several processes that torchrun started on a node, the first speaks for all, unless it is a `ProcessError`.
    """
    show_any_text()
    try:
        return main()
    except UserError as fault:
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(fault, ProcessError):
            with suppress(OSError):  # nobody is there to read it
                for line in str(fault).splitlines():
                    print(f"headrace: {line}", file=sys.stderr)
        return 2
    except OSError as fault:
        if fault.filename is None or fault.errno not in _THEIRS:
            raise
        print(f"headrace: {os.fsdecode(fault.filename)}: {fault.strerror}", file=sys.stderr)
        return 2
    except MemoryError as fault:
        print(f"headrace: there is not enough memory ({fault or 'no more is said'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):
            print("headrace: interrupted", file=sys.stderr)
        return 130
    finally:
        _let_go_of_output()


def _let_go_of_output() -> None:
    """Python ends with 120 where it cannot write what is left: of a closed terminal, of a full disk under a log."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
