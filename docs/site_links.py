"""For mkdocs: pages link to files of the repository (code, figures); the site carries them along under files/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
CARRIED = ("results/*.png", "methods/*.py", "eval/*.py", "eval/benchmarks/*.py", "common/**/*.py", "*.md")


def on_files(files: Any, config: Any) -> Any:
    for pattern in CARRIED:
        for path in ROOT.glob(pattern):
            name = f"files/{path.relative_to(ROOT)}" + (".txt" if path.suffix in (".md", ".py") else "")
            files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to files/ instead."""
    depth = page.file.src_uri.count("/")
    up, out = "../" * depth, "../" * (depth + 1)

    def inside(found: re.Match) -> str:
        target = found[1]
        return f"]({up}files/{target}{'.txt' if target.endswith(('.md', '.py')) else ''})"

    return re.sub(rf"\]\({re.escape(out)}([^)#\s]+)\)", inside, markdown)
