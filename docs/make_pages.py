"""Write what in README and docs/ is made from code and results, so that it cannot differ from them.

    .venv/bin/python docs/make_pages.py            # docs/methods/*.md and the marked tables
    .venv/bin/python docs/make_pages.py --check    # say what is stale, with exit status 1, and write nothing

A page per method: its docstring, its options that methods/grpo.py lacks or sets otherwise, how far the two files
differ, and its results. In README.md, CONTRIBUTING.md and docs/*.md the lines between <!-- table: NAME --> and
<!-- end --> are replaced by table NAME: effects/KEY (results/KEY.json: what the paper is about), versus/KEY (held-out
accuracy against each control), overview/KEY (every method, every family of questions), files/FOLDER or
files/FOLDER:NAME,NAME (each file's length and the first sentence of its docstring), total/FOLDER (files and lines).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import html
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "eval")]

import compare  # noqa: E402
import tables  # noqa: E402
from common.args import option_help  # noqa: E402

# ---------------------------------------------------------------- tables


def numbers_table(lines: list[list[str]]) -> str:
    """Markdown: the first column to the left, the others to the right."""
    return tables.grid(lines, f"| --- |{' ---: |' * (len(lines[0]) - 1)}")


def sizes(place: str) -> str:
    """Python files with their lines and why they exist. place: FOLDER for all of it, or FOLDER:NAME,NAME,..."""
    folder, _, names = place.partition(":")
    lines = [["file", "lines", "what for"]]
    total = 0
    found = (
        [ROOT / folder / f"{name}.py" for name in names.split(",")] if names else sorted((ROOT / folder).glob("*.py"))
    )
    for path in found:
        source = path.read_text()
        about = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
        total += (count := len(source.splitlines()))
        lines.append([f"`{path.relative_to(ROOT / folder)}`", str(count), cell(first_sentence(about))])
    return tables.grid([*lines, ["all", f"{total:,}", ""]], "| --- | ---: | --- |")


def first_sentence(text: str) -> str:
    return re.split(r"(?<=\w\.) (?=[A-Z`])", text)[0].rstrip(".:")


def table(name: str) -> str:
    kind, key = name.split("/", 1)
    if kind == "files":
        return sizes(key)
    if kind == "total":
        counts = [len(path.read_text().splitlines()) for path in (ROOT / key).rglob("*.py")]
        return f"{len(counts)} files, {sum(counts):,} lines in all, the longest {max(counts)}."
    result = json.loads((ROOT / f"results/{key}.json").read_text())
    if kind == "overview":
        return tables.grid(tables.by_family(result))
    return numbers_table({"effects": tables.at_a_glance, "versus": tables.versus}[kind](result))


def with_tables(text: str) -> str:
    """The text with every marked table as the results have it now."""
    return re.sub(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)",
                  lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text, flags=re.DOTALL)  # fmt: skip


# ---------------------------------------------------------------- a page per method


def method_page(key: str) -> str:
    source = (ROOT / f"methods/{key}.py").read_text()
    name, about = (ast.get_docstring(ast.parse(source)) or key).split("\n", 1)
    title, _, subtitle = name.partition(": ")
    parts = [f"# {title.rstrip('.')}", f"*{subtitle}*" if subtitle else "", as_markdown(about)]
    parts += [differences(key, source), options(key)]
    if (ROOT / f"results/{key}.json").is_file():
        parts.append(evidence(key))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def as_markdown(docstring: str) -> str:
    """A docstring as Markdown: no HTML, commands as bash, numbered lists with a line before them."""
    text = html.escape(docstring, quote=False)
    text = re.sub(r"\n\n((?:    .*\n)+)", lambda found: f"\n\n```bash\n{unindented(found[1])}```\n", text)
    text = re.sub(r"(?<!\n)\n(1\. )", r"\n\n\1", text)
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def unindented(block: str) -> str:
    return "".join(html.unescape(line[4:]) + "\n" for line in block.splitlines())


def differences(key: str, source: str) -> str:
    """How much of the file is not in methods/grpo.py."""
    if key == "grpo":
        return f"## The file\n\n[`methods/grpo.py`](../../methods/grpo.py), {len(source.splitlines())} lines."
    base, own = (ROOT / "methods/grpo.py").read_text().splitlines(), source.splitlines()
    changes = difflib.SequenceMatcher(None, base, own).get_opcodes()
    added = [n + 1 for kind, _, _, start, end in changes if kind != "equal" for n in range(start, end)]
    dropped = sum(end - start for kind, start, end, _, _ in changes if kind != "equal")
    named = part_of(source)
    kinds = [named.get(n, "code") for n in added]
    parts = " and ".join(f"{kinds.count(kind)} of {kind}" for kind in ("docstring", "options and presets", "code"))
    return (f"## The file\n\n[`methods/{key}.py`](../../methods/{key}.py), {len(own)} lines, {len(added)} of which "
            f"`methods/grpo.py` lacks: {parts.replace(' and ', ', ', 1)}. It leaves out {dropped}.\n\n"
            f"```bash\ndiff methods/grpo.py methods/{key}.py\n```")  # fmt: skip


def part_of(source: str) -> dict[int, str]:
    """Line number -> "docstring", or "options and presets"; none for code."""
    tree, found = ast.parse(source), {}
    for node in tree.body:
        names = [getattr(target, "id", "") for target in getattr(node, "targets", [])]
        options = isinstance(node, ast.ClassDef) and node.name == "Args" or {"PRESETS", "VARIANTS", "PAPER"} & {*names}
        kind = "docstring" if node is tree.body[0] else "options and presets" if options else ""
        found |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), kind) if kind else {}
    return found


def options(key: str) -> str:
    """The options that methods/grpo.py lacks or sets otherwise."""
    own, base = (compare.load_method(name).Args for name in (key, "grpo"))
    defaults = {field.name: field.default for field in dataclasses.fields(base)}
    texts = option_help(own)
    rows = [[f"`--{field.name.replace('_', '-')}`", f"`{field.default}`" if field.default != "" else "",
             cell(texts.get(field.name, ""))]
            for field in dataclasses.fields(own)
            if key == "grpo" or field.name not in defaults or defaults[field.name] != field.default]  # fmt: skip
    head = "Its options" if key == "grpo" else "Options that `methods/grpo.py` lacks or sets otherwise"
    lines = [["option", "default", "meaning"], *[[one.replace("\n", " ") for one in row] for row in rows]]
    return f"## {head}\n\n{tables.grid(lines, '| --- | --- | --- |')}\n\nAll of them: `./run.sh {key} --help`."


def cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")


def evidence(key: str) -> str:
    result = json.loads((ROOT / f"results/{key}.json").read_text())
    return (f"## In the micro-world\n\nThe claim: {cell(result['claim'])}\n\n```bash\n{result['command']}\n```\n\n"
            f"{numbers_table(tables.at_a_glance(result))}\n\n![Results](../../results/{key}.png)\n\n"
            f"[What to make of it](../evidence.md#{key}).")  # fmt: skip


# ---------------------------------------------------------------- writing


def pages() -> dict[Path, str]:
    """All that is made here: path -> content."""
    keys = sorted(path.stem for path in compare.METHODS.glob("*.py"))
    found = {ROOT / f"docs/methods/{key}.md": method_page(key) for key in keys}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if "<!-- table:" in (text := path.read_text()):
            found[path] = with_tables(text)
    return found


def main() -> None:
    made = pages()
    stale = [path for path, content in made.items() if not path.is_file() or path.read_text() != content]
    if "--check" in sys.argv[1:]:
        print("".join(f"stale: {path.relative_to(ROOT)}\n" for path in stale), end="")
        sys.exit(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path])
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
