"""The report: self-contained, hostile text stays text, readable in both themes, any part may be missing."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import toy_run
from PIL import Image

from common import charts, report, report_rollouts
from common.errors import SightRLError
from common.evaluation import Evaluation
from common.report import text, write_report
from common.report_rollouts import level
from common.run import Run

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&lt;\x00\u202e\ud800</div></main>"
VOID = {"meta", "img"}


@dataclass
class Args(toy_run.Args):
    run_name: str = "run"
    checkpoint_every: int = 50
    data: str = HOSTILE
    model: str = "tiny"


def evaluation(rate: float, responses: str = HOSTILE) -> Evaluation:
    picture = base64.b64encode(b"not really a jpeg").decode()
    records = []
    for split in ("test", "test_counter"):
        for i in range(12):
            scores = [float((i * 5 + j * 3) % 12 < 12 * rate) for j in range(4)]
            record = {"id": f"q{i}", "task": ("count", HOSTILE)[i % 2], "split": split, "question": HOSTILE}
            record |= {"answer": HOSTILE, "responses": [responses] * 4, "scores": scores, "states": ["ok"] * 4}
            record |= {"habits": ["careful", "blind", "sloppy", "odd"], "thumbnail": picture if i else HOSTILE}
            records.append(record)
    return Evaluation(records, 4)


def make_run(folder: Path, steps: int = 30) -> Path:
    run = Run(Args(out=str(folder)), "vppo", steps)
    for step in range(steps):
        metrics = {"reward/mean": step / steps, "accuracy": 0.5, "entropy": 1.0, "habit/careful": 0.3, "tokens": 9}
        metrics |= {"length": 20 + step, "grad_norm": float("nan"), "own/<metric>": step}
        with run.phase("rollout"):
            pass
        run.log(step, metrics)
        records = []
        for i in range(5):
            tokens = ["Look", "ing", " at ", HOSTILE, "\n"]
            record = {
                "sample_id": f"s{step}",
                "task": HOSTILE,
                "question": HOSTILE,
                "answer": HOSTILE,
                "response": HOSTILE,
            }
            record |= {"image": np.full((40, 60, 3), step, np.uint8), "rewards": {"a": i % 2, HOSTILE: 0.0}}
            record |= {"advantage": i - 2.0, "habit": HOSTILE, "tokens": tokens}
            record |= {"dependency": [0.0, 0.1, 0.4, 2.0, None], "kept": [False, False, True, True, False]}
            records.append(record)
        run.log_rollouts(step, records)
    run.close()
    evaluation(0.4).save(run.folder / "eval_before.json")
    evaluation(0.8).save(run.folder / "eval_after.json")
    (run.folder / "summary.json").write_text(json.dumps({"seconds": 12.0, "skipped": [HOSTILE] * 30}))
    return run.folder


class Page(HTMLParser):
    """Tags with their attributes, the text outside the style sheet; every tag must be closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (self.open[-4:], tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def source(folder):
    return write_report(folder).read_text(encoding="utf-8")


# ---------------------------------------------------------------- safety


def test_page_is_self_contained_and_hostile_text_stays_text(source):
    page = Page(source)
    assert not page.open
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "form", "base", "a"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("style", "href", "srcset") for name in attributes), tag
        if "src" in attributes:
            assert re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", attributes["src"])
    assert "http:" not in source and "https:" not in source and "url(" not in source
    assert "<script>alert(1)</script>" in page.words  # shown, not run
    assert not set("\x00\u202e") & set(source)


def test_policy_allows_exactly_the_style_sheet(source):
    policy = dict(Page(source).tags[3][1])
    assert policy["http-equiv"] == "Content-Security-Policy"
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy["content"] == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_only_pictures_of_the_run_are_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = make_run(tmp_path, steps=1)
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    for name in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png", "images/none.png"):
        lines[0]["images"] = [name]
        (folder / "rollouts.jsonl").write_text(json.dumps(lines[0]) + "\n")
        assert "data:image/png" not in write_report(folder).read_text()


def test_text_escapes_and_marks_disguises():
    assert text("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;&#x27;"
    assert text("x\u202ey\x07\ud800\n\t") == "x\ufffdy\ufffd\ufffd\n\t"
    assert text(None) == "None"


# ---------------------------------------------------------------- content


def test_page_shows_the_results(source):
    words = Page(source).words
    for part in (
        "VPPO on", "Held-out accuracy rose", "pass@4", "Counter-prior gap", "Habits", "Learning curves",
        "Entropy", "own/<metric>", "Rose most", "Rollouts", "Early in training", "Late in training",
        "2 more responses", "30 data rows could not be read", "and 10 more", "McNemar", "test_counter",
        "Versions and hardware",
    ):  # fmt: skip
        assert part in words, part


def test_tokens_are_coloured_by_dependency_and_marked(source):
    groups, responses, tokens = 2 * report_rollouts.GROUPS, 5, 5
    found = re.findall(r'<span class="t d(\d) (kept|masked)" title="([^"]*)">', source)
    assert len(found) == groups * responses * tokens
    assert found[:5] == [
        ("0", "masked", "0"), ("0", "masked", "0.1"), ("1", "kept", "0.4"), ("7", "kept", "2"),
        ("0", "masked", "0"),
    ]  # fmt: skip


def test_levels_are_monotone_and_total():
    levels = [level(v / 100, 1.0) for v in range(-5, 300)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] == 7
    assert level(1.0, 0.0) == 0


@pytest.mark.parametrize("missing", ["eval_before.json", "eval_after.json", "rollouts.jsonl", "metrics.jsonl",
                                     "summary.json", "run.json", "versions.json", "images"])  # fmt: skip
def test_a_missing_part_is_left_out(folder, tmp_path, missing):
    for path in folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "report.html").unlink(missing_ok=True)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not page.open and "Settings" in page.words
    assert ("has not finished" in page.words) == (missing == "summary.json")


def test_lines_cut_short_and_other_damage(tmp_path):
    folder = make_run(tmp_path, steps=2)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with open(folder / name, "a") as file:
            file.write('[1]\n{"step": 2, "acc')
    assert "2 of 2" in Page(write_report(folder).read_text(encoding="utf-8")).words
    (folder / "config.json").write_text("{")
    with pytest.raises(SightRLError, match=r"config\.json is damaged"):
        write_report(folder)
    with pytest.raises(SightRLError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")


def test_long_runs_stay_small():
    xs = list(range(20_000))
    figure = charts.curves("x", [("", "s0", xs, [np.sin(x / 999) for x in xs])])
    assert len(figure) < 20_000
    assert charts.curves("x", [("", "s0", [0, 1], [None, float("nan")])]) == ""
    assert "step 1" in charts.curves("x", [("", "s0", [0], [3.0])])


# ---------------------------------------------------------------- colours


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_in_both_themes():
    """WCAG AA, 4.5 to 1, for every pair of text and background the style sheet uses."""
    style = (Path(report.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        c = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        pairs = [("ink", "paper"), ("ink", "card"), ("muted", "paper"), ("muted", "card"), ("accent", "card")]
        pairs += [("accent", "paper"), ("up", "card"), ("down", "card"), ("warn", "warn-back")]
        pairs += [("ink", f"d{i}") for i in range(1, 5)] + [("on-d", "d5"), ("on-d6", "d6"), ("on-d6", "d7")]
        pairs += [(f"on-{h}", h) for h in ("careful", "sloppy", "blind", "other")]
        bad = {(a, b): round(contrast(c[a], c[b]), 2) for a, b in pairs if contrast(c[a], c[b]) < 4.5}
        assert not bad
