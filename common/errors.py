"""The one error users see without a traceback."""

import sys
import traceback
from collections.abc import Callable
from typing import Any

how_to_continue = ""  # the command that resumes the run under way; set while a run trains


class SightRLError(Exception):
    """An error whose message is all the user needs: one sentence with the file, the row and the fix."""


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
        print(f"error: {error}{'' if 'continue with: ' in str(error) else _hint(' Then ')}", file=sys.stderr)
        sys.exit(2)
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
