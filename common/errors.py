"""The one error users see without a traceback."""

import sys
from collections.abc import Callable
from typing import Any


class SightRLError(Exception):
    """An error whose message is all the user needs: one sentence with the file, the row and the fix."""


def main_guard(main: Callable[[Any], Any], args: Any) -> None:
    """Run `main(args)`; a SightRLError becomes one line on stderr and exit status 2, Ctrl-C becomes 130.

    Several processes that meet the same SightRLError print it once.
    """
    from common import distributed

    try:
        main(args)
        distributed.finish()
    except SightRLError as error:
        distributed.before_error(shared=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:
        distributed.before_error(shared=False)
        raise
