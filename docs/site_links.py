"""For mkdocs: pages link to files of the repository (code, figures, results); the site carries them under files/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
AS_TEXT = (".md", ".py")  # a browser shall show them, and mkdocs make no pages of them


def on_files(files: Any, config: Any) -> Any:
    """Add every file outside docs/ that a page links to."""
    linked = set()
    for page in (ROOT / "docs").rglob("*.md"):
        targets = re.findall(r"\]\((\.\./[^)#\s]+)", page.read_text(encoding="utf-8"))
        linked |= {path for target in targets if (path := (page.parent / target).resolve()).is_file()}
    for path in sorted(path for path in linked if not path.is_relative_to(ROOT / "docs")):
        name = f"files/{path.relative_to(ROOT)}" + (".txt" if path.suffix in AS_TEXT else "")
        files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/ lead to files/ instead."""
    depth = page.file.src_uri.count("/")
    up, out = "../" * depth, "../" * (depth + 1)

    def inside(found: re.Match) -> str:
        target = found[1]
        return f"]({up}files/{target}{'.txt' if target.endswith(AS_TEXT) else ''}"

    return re.sub(rf"\]\({re.escape(out)}([^)#\s]+)", inside, markdown)
