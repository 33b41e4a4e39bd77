"""Text out of data in Markdown: it stays one cell, and neither HTML, a link nor a picture comes of it."""

from __future__ import annotations

import re

from common.errors import printable

SPECIAL = str.maketrans({"|": "\\|", "`": "\\`", "[": "\\[", "<": "&lt;", ">": "&gt;", "&": "&amp;"})


def markdown(text: object) -> str:
    """A name from the rows in a table or a sentence, on one line.

    >>> print(markdown("a|b\\n<img src=x> ![y](z)"))
    a\\|b &lt;img src=x&gt; !\\[y](z)
    """
    return re.sub(r"\s+", " ", printable(str(text))).replace("\\", "\\\\").translate(SPECIAL)


def code(text: object) -> str:
    """A name or path in backticks.

    >>> code("runs/`x`")
    "`runs/'x'`"
    """
    return "`" + re.sub(r"\s+", " ", printable(str(text))).replace("`", "'") + "`"
