"""Hostile text in what people look at: the report in a browser, Markdown, figures, and the terminal. It stays text."""

from __future__ import annotations

import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_report
from rich.console import Console

import figures
import held_out
import summary
from benchmark import Benchmark
from common.charts import text
from common.errors import SightRLError, main_guard
from common.evaluation import Evaluation, print_table
from common.plan import print_plan
from common.progress import Display
from common.report import write_report
from common.run import Run
from methods import grpo
from progress import Progress

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OWNED = "document.documentElement.dataset.owned=1"  # shows as data-owned in the dump of the page
ATTACKS = [
    "<script>{js}</script>", "</title><script>{js}</script>", "</style><script>{js}</script>",
    "--><script>{js}</script>",
    "</code></b></span></div></main><script>{js}</script>", "<img src=x onerror={js}>", '"><img src=x onerror={js}>',
    "'><svg/onload={js}>", "<svg><animate onbegin={js} attributeName=x dur=1s>",
    '" autofocus tabindex=1 onfocus={js} x="',
    "' autofocus tabindex=1 onfocus={js} x='", "` onfocus={js} `", "<input autofocus onfocus={js}>",
    "<details open ontoggle={js}>x",
    "<iframe srcdoc='<script>parent.{js}</script>'></iframe>", "<body onload={js}>",
    "<math><mtext><style><img src=x onerror={js}>",
    "<template><img src=x onerror={js}></template>", "&lt;script&gt;{js}&lt;/script&gt;",
    "\\u003cscript\\u003e{js}\\u003c/script\\u003e",
    "\u202e<script>{js}</script>\x00<scr\x00ipt>{js}</script>", "＜script＞{js}＜/script＞",
    "<scr<script>ipt>{js}</scr</script>ipt>",
    "<img src={url}/a><link rel=stylesheet href={url}/b><script src={url}/c></script><style>@import '{url}/d'</style>",
    "<meta http-equiv=refresh content='0;url={url}/e'><object data={url}/f></object><video src={url}/g></video>",
    "<base href={url}/><form action={url}/h><button autofocus>x</form>", "\ud800</main>",
    "]]><![CDATA[<script>{js}</script>",
]  # fmt: skip


def attack(url: str) -> str:
    return " ".join(ATTACKS).replace("{js}", OWNED).replace("{url}", url)


# ---------------------------------------------------------------- the report in a browser


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[str, list[str]]]:
    """(address of a server, the paths that anybody asked it for)."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, asked: tuple[str, list[str]]) -> str:
    """The report of a run in which everything that can be a text is an attack: answers, questions, tokens, tasks,
    rewards, habits, metrics, options, versions, skipped rows, effects, and the name of the folder."""
    said = attack(asked[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_report, "HOSTILE", said)
        patch.setattr(test_report, "evaluation", functools.partial(test_report.evaluation, responses=said))
        folder = test_report.make_run(tmp_path_factory.mktemp("run"), steps=8)
    for name in ("config", "run", "versions", "summary"):
        found = json.loads((folder / f"{name}.json").read_text())
        found |= {
            key: said
            for key in ("data", "model", "method", "command", "started", "git_commit", "torch", "processor")
            if key in found
        }
        found |= {said: said, "effects": {said: {"before": 0.1, "after": 0.2}}, "gpus": [said]}
        (folder / f"{name}.json").write_text(json.dumps(found))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            json.dumps({"step": 8, said: 1.0, "seconds/" + said: 1.0, "seconds/step": 1.0, "reward/" + said: 0.5})
            + "\n"
        )
    folder = folder.rename(folder.with_name("<img src=x onerror=" + OWNED + ">\"'"))
    return write_report(folder).read_text(encoding="utf-8")


def without_policy(source: str) -> str:
    found = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert found != source
    return found


def seen(source: str, folder: Path) -> str:
    """The page as the browser has it after its scripts had time to run."""
    (folder / "page.html").write_text(source, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000"]  # fmt: skip
    command = [
        CHROMIUM,
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        f"file://{folder / 'page.html'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert "<main>" in done.stdout
    return done.stdout


def owned(dump: str) -> bool:
    return "data-owned" in re.search(r"<html[^>]*>", dump).group()


browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@browser
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "escaping alone"])
def test_nothing_in_the_report_runs(policy: bool, page: str, asked: tuple[str, list[str]], tmp_path: Path) -> None:
    dump = seen(page if policy else without_policy(page), tmp_path)
    assert not owned(dump) and asked[1] == []
    assert not re.search(r"<(script|iframe|object|link|form|base|input|video|template|math)\b", dump)
    assert "&lt;script&gt;" in dump  # it is shown


@browser
def test_the_attacks_would_work_and_the_policy_alone_stops_them(
    page: str, asked: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Both guards are real: unescaped text takes over a page without the policy, and not one with it."""
    raw = page.replace(
        "<main>", "<main>" + "".join(f"<div>{part}</div>" for part in ATTACKS[5:9]).replace("{js}", OWNED)
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert owned(seen(without_policy(raw), tmp_path / "a"))
    assert not owned(seen(raw, tmp_path / "b"))


def test_every_text_is_escaped(page: str) -> None:
    """Where there is no browser: no tag and no attribute but the report's own."""
    parsed = test_report.Page(page)
    assert not parsed.open
    assert {tag for tag, _ in parsed.tags} <= set(
        ["html", "head", "meta", "title", "style", "body", "main", "header", "p", "h1", "h2", "h3", "code", "div",
         "span", "b", "small", "i", "svg", "line", "circle", "text", "rect", "polyline", "figure", "figcaption",
         "details", "summary", "table", "tr", "th", "td", "ul", "li", "img", "footer"])  # fmt: skip
    assert not [
        name for _, attributes in parsed.tags for name in attributes if name.startswith("on") or name == "autofocus"
    ]
    assert not set(page) & set(map(chr, [*range(9), *range(14, 32), 0x202E]))
    assert text("\x1b[2J\u2066") == "\ufffd[2J\ufffd"


# ---------------------------------------------------------------- Markdown

NAMES = ["a|b", "<script>x</script>", "`x`", "![y](http://example.com/z.png)", "[click](javascript:x)", "two\nlines",
         "\x1b[2J", "a\\|b",
         "| --- |", "\u202ex"]  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def check_markdown(source: str, rows: int) -> None:
    """One table of so many rows; no HTML, link, picture or code comes of a name."""
    table = [line for line in source.splitlines() if line.startswith("|")]
    assert len(table) == rows + 2 and len({len(cells(line)) for line in table}) == 1, source
    bare = re.sub(r"\\.", "", "\n".join(table))
    assert not re.search(r"[<>`\x1b\u202e]|!?\[[a-z]", bare), source


def found(**more: Any) -> dict[str, Any]:
    line = {"value": 1.0, "interval": None, "count": 3}
    return {"model": "`a`|b", "scoring": "official", "k": 1, "rows": 3, "source": "<b>|", "split": "test", "missing": 0,
            "skipped": ["a|b\n<img src=x>"], "repeated": 0, "undecided": 0.0, "truncated": 0.0, "benchmark": "x",
            "metric": "accuracy", "lines": [line | {"name": name} for name in NAMES]} | more  # fmt: skip


def test_tables_of_eval() -> None:
    bench = Benchmark(title="X", source="hf:x", split="test", size=3, metric="accuracy", licence="", columns=(),
                      prompt=lambda row, scoring: "", score=lambda row, response, scoring: None)  # fmt: skip
    source = summary.table(bench, found())
    check_markdown(source, len(NAMES))
    assert source.startswith("`'a'|b` on X") and "<" not in source and "\n<img" not in source
    check_markdown(summary.overview([found(benchmark=name) for name in NAMES]), len(NAMES))
    records = [{"id": str(i), "task": name, "split": "a|<b>", "scores": [1.0], "responses": ["x"], "truncated": [False]}
               for i, name in enumerate(NAMES)]  # fmt: skip
    check_markdown(held_out.table(Evaluation(records, 1)), len(NAMES) + 1)


# ---------------------------------------------------------------- figures


def test_dollars_in_a_figure(tmp_path: Path) -> None:
    r"""Names of tasks and commands with $\frac{ in them are drawn as they are; matplotlib would stop at them."""
    score = {"score": 0.5, "interval": [0.4, 0.6]}
    names = ["$\\frac{1}{$", "100$ or $50", "_hidden", "\x00\ud83d"[:1], "$x$", "a\nb"]
    row = {"tasks": {name: {"base": score, "final": score} for name in names}, "own": None,
           "effects": {"$\\no{$": {"before": score, "after": score}},
           "curve": {"tokens": [1, 2], "accuracy": [0.1, 0.2], "low": [0, 0], "high": [1, 1]}}  # fmt: skip
    figures.comparison({"method": names[0], "methods": {names[0]: row, "mine --prompt $\\x{": row}}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


# ---------------------------------------------------------------- the terminal

SAID = [
    "[red]x[/red]",
    "[/nothing]",
    ":smile:",
    "[link=http://example.com]x[/link]",
    "\x1b[2J\x1b]0;title\x07\x9b2J",
    "\u202ex\rgone",
]
COMMANDS = re.compile("\x1b\\[2J|\x1b\\]|\x07|\x9b|\u202e|\r")


def check_terminal(out: str) -> None:
    assert not COMMANDS.search(out)
    assert all(words in out for words in SAID[:4])


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=200)


def test_names_in_the_table_of_accuracies(terminal: Console) -> None:
    records = [
        {"id": str(i), "task": name, "split": name, "scores": [1.0], "responses": ["x"]} for i, name in enumerate(SAID)
    ]
    print_table(Evaluation(records, 1), Evaluation(records, 1), console=terminal)
    check_terminal(terminal.file.getvalue())


def test_options_in_the_plan(terminal: Console) -> None:
    print_plan(grpo.Args(prompt=" ".join(SAID[:4]) + "{question}"), {}, console=terminal)
    shown = re.sub(r"\s+|[│|]", "", terminal.file.getvalue())
    assert all(re.sub(r"\s+", "", words) in shown for words in SAID[:2])


def test_lines_of_a_run(terminal: Console, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    display = Display("toy", 0, 3)
    display.live, display.console = object(), terminal
    run = Run(test_report.Args(out=str(tmp_path)), "toy", 3)
    for line in SAID:
        display.say(line)
        run.say(line)
    run.close()
    check_terminal(terminal.file.getvalue())
    check_terminal(capsys.readouterr().out)


def test_error_sentences(capsys: pytest.CaptureFixture) -> None:
    def fail(_: object) -> None:
        raise SightRLError(" ".join(SAID) + "\ud800")

    with pytest.raises(SystemExit, match="2"):
        main_guard(fail, None)
    check_terminal(capsys.readouterr().err)


def test_the_bar_of_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = Progress("[/nothing] [red]x", 3, 0)
    bar.show(2)
    bar.close()
    assert "[/nothing] [red]x" in sys.stderr.getvalue()
