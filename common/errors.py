"""The one error users see without a traceback."""

import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

# What a terminal or a browser could take for a command: control and direction-changing characters, lone surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text out of data or a model, fit for a terminal: what could be a command to it is shown as U+FFFD."""
    return UNSAFE.sub("\ufffd", text)


how_to_continue = ""  # the command that resumes the run under way; set while a run trains


class SightRLError(Exception):
    """An error whose message is all the user needs: one sentence with the file, the row and the fix."""


def bad_row(problem: str, fix: str) -> SightRLError:
    """What is said about a row that cannot be used. problem: begins with the file and the row."""
    return SightRLError(f"{problem}; {fix}, or leave such rows out with --bad-rows skip.")


def stop(error: SightRLError) -> NoReturn:
    """End the program with the sentence on stderr and exit status 2; while a run trains, with how to continue it."""
    hint = "" if "continue with: " in str(error) else _hint(" Then ")
    print(f"error: {printable(str(error) + hint)}", file=sys.stderr)
    sys.exit(2)


def main_guard(main: Callable[[Any], Any], args: Any) -> None:
    """Run `main(args)`; a SightRLError becomes one line on stderr and exit status 2, Ctrl-C becomes 130.

    Several processes that meet the same SightRLError print it once. Any error while a run trains is followed by the
    command that continues it.
    """
    from common import distributed

    try:
        main(args)
        distributed.finish()
    except SightRLError as error:
        distributed.before_error(shared=True)
        stop(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        distributed.before_error(shared=False)
        traceback.print_exc()
        if how_to_continue:
            print(_hint(), file=sys.stderr)
        sys.exit(1)


def _hint(before: str = "") -> str:
    return f"{before}continue with: {how_to_continue}" if how_to_continue else ""
