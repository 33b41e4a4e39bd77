"""eval/compare.py on fake methods that write run folders in milliseconds; statistics on checkable numbers."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import compare
import comparison as stats
import outcomes
from common.errors import SightRLError
from processes import made_by_other_code

ROOT = Path(__file__).resolve().parent.parent

# A method in the form of methods/*.py: accuracy rises to `goal`, 100 tokens a step; it can stop half-way.
FAKE = '''
"""A fake. Published (somewhere): 1.5 better than nothing."""
from __future__ import annotations
import json, os, sys, time
from dataclasses import asdict, dataclass
from pathlib import Path
from common.args import CommonArgs, parse_args


@dataclass
class Args(CommonArgs):
    goal: float = GOAL
    """Accuracy in the end."""
    patience: float = 0.0
    """Seconds to wait in every step."""
    early: bool = False
    """End before the budget is spent."""
    own: bool = False
    """Have a task of its own."""
    silent: bool = False
    """Answer nothing while training."""


def evaluation(accuracy, shift):
    records = [{"id": f"q{i}", "task": ["count", "color"][i % 2], "split": ["test", "test_combo"][i // 4 % 2],
                "question": "?", "answer": "1", "responses": ["a", "b"], "habits": ["blind", "careful"],
                "scores": [float(accuracy > (i + shift) % 8 / 8), 0.0 + (accuracy > 0.5)]} for i in range(8)]
    return json.dumps({"records": records, "k": 2, "settings": {}})


def main(args):
    folder = Path(args.resume or Path(args.out) / args.run_name)
    folder.mkdir(parents=True, exist_ok=bool(args.resume))
    (folder / "config.json").write_text(json.dumps(asdict(args)))
    (folder / "run.json").write_text(json.dumps({"git_commit": "abc", "git_dirty": False}))
    (folder / "versions.json").write_text(json.dumps({"python": "3", "torch": "2", "cores": 2, "gpus": []}))
    (folder / "eval_before.json").write_text(evaluation(0.3, 0))
    log = folder / "metrics.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    for step in range(done, args.budget_tokens // 100):
        time.sleep(args.patience)
        accuracy = 0.3 + (args.goal - 0.3) * min(1, step / 20) + 0.01 * args.seed
        row = {"step": step, "tokens_generated": 100 * (step + 1), "accuracy": accuracy, "grad_norm": 0.5,
               "dependency/visual": 0.8 + 0.1 * args.seed, "dependency/template": 0.1}
        if args.silent:
            del row["accuracy"]
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\\n")
        if args.early and step > 5:
            break
        if (folder.parent / "stop").exists():
            sys.exit(3)
    (folder / "eval_after.json").write_text(evaluation(args.goal, args.seed))
    own = evaluation(args.goal, 0).replace('"task": "count"', '"task": "detect"')
    if args.own:
        (folder / "own_before.json").write_text(evaluation(0.2, 0))
        (folder / "own_after.json").write_text(own)
    effects = {"recall": {"before": 0.25, "after": args.goal + 0.01 * args.seed},
               "missing": {"before": None, "after": 1.0}}
    (folder / "summary.json").write_text(json.dumps({"effects": effects}))


if __name__ == "__main__":
    main(parse_args(Args, __doc__))
'''


@pytest.fixture
def methods(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "methods"
    folder.mkdir()
    for name, goal in (("vppo", 0.9), ("grpo", 0.6)):
        (folder / f"{name}.py").write_text(FAKE.replace("GOAL", str(goal)))
    monkeypatch.setattr(compare, "METHODS", folder)
    monkeypatch.setattr(compare, "SETTINGS", {"grpo": "--prompt {question}"})
    monkeypatch.setattr(compare, "CONTROLS", {"vppo": ["vppo --goal 0.5"]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return folder


def test_three_papers_make_an_overview_without_controls(methods, tmp_path, capsys):
    for name in ("pearl", "vogue"):
        (methods / f"{name}.py").write_text(FAKE.replace("GOAL", "0.7"))
    compare.main(settings("vppo --own", "pearl", "vogue", "grpo"))
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "results/overview.json").read_text())
    assert list(result["methods"]) == ["vppo --own", "pearl", "vogue", "grpo"]
    assert "| method | base | final | gain | color | count |" in shown
    assert "own task 0.12 → 1.00 ± 0.00; recall 0.25 → 0.9" in shown and "recall 0.25 → 0.60 ± 0.01" in shown
    assert (tmp_path / "results/overview.png").stat().st_size > 10_000


def test_a_contender_that_answers_nothing_while_training_has_no_curve(methods, tmp_path, capsys):
    compare.main(settings("vppo", "grpo --silent"))
    result = json.loads((tmp_path / "results/vppo.json").read_text())
    silent = result["methods"]["grpo --silent"]
    assert silent["curve"] == {} and silent["curve_mean"] is None
    assert all(set(level["tokens"]) == {None} for level in silent["levels"].values())
    assert "curve_mean" not in result["paired"]["grpo --silent"] and "final" in result["paired"]["grpo --silent"]
    assert "curve_mean" in result["paired"]["vppo --goal 0.5"]
    assert "never" in capsys.readouterr().out and (tmp_path / "results/vppo.png").stat().st_size > 10_000


def test_own_tasks_are_shown_and_training_curves_of_different_tasks_not_compared(methods, tmp_path, capsys):
    compare.main(settings("vppo --own", "vppo --own --goal 0.5", "grpo", name="tasks"))
    result = json.loads((tmp_path / "results/tasks.json").read_text())
    own, paired = result["methods"]["vppo --own"]["own"], result["paired"]
    assert own["final"]["score"] > own["base"]["score"] and result["methods"]["grpo"]["own"] is None
    assert "| before → after | own task | recall |" in capsys.readouterr().out
    assert "curve_mean" in paired["vppo --own --goal 0.5"] and "curve_mean" not in paired["grpo"]


def settings(*names: str, **options) -> compare.Args:
    given = dict(seeds=2, budget_tokens=3000, jobs=4, allow_different_budgets=True) | options
    return compare.Args(methods=names, **given)


def test_compares_writes_results_and_does_not_repeat_finished_runs(methods, tmp_path, capsys):
    compare.main(settings("vppo", "grpo"))
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "results/vppo.json").read_text())
    assert list(result["methods"]) == ["vppo", "vppo --goal 0.5", "grpo"]
    assert result["paired"]["grpo"]["final"]["difference"] > 0
    assert result["methods"]["vppo"]["final"]["score"] > result["methods"]["vppo"]["base"]["score"]
    assert result["methods"]["vppo"]["dependency"]["ratio"] == pytest.approx(8.5)
    assert result["methods"]["vppo"]["habits"]["after"] == {"blind": 0.5, "careful": 0.5}
    assert len(result["methods"]["vppo"]["curve"]["accuracy"]) == outcomes.BINS
    assert result["claim"].startswith("learning only from") and result["commits"][0]["git_commit"] == "abc"
    assert "| `grpo` |" in shown and "`grpo` ran as `grpo --prompt {question}`" in shown
    assert (tmp_path / "results/vppo.png").stat().st_size > 10_000
    holds = {v["statement"]: v["holds"] for v in result["shown"]}
    assert holds["`vppo` is more accurate on average while training than `grpo` (difference)"] == "yes"

    effect = result["methods"]["vppo"]["effects"]["recall"]
    assert effect["before"]["score"] == 0.25 and effect["after"]["score"] == pytest.approx(0.905)
    assert list(result["methods"]["vppo"]["effects"]) == ["recall"]
    assert result["paired"]["grpo"]["effects"]["recall"]["difference"] == pytest.approx(0.3)
    assert result["methods"]["vppo"]["own"] is None
    assert "| before → after | recall |" in shown and "0.250 → 0.905 [0.900, 0.910]" in shown

    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/compare/*/seed*/summary.json")}
    assert len(stamps) == 6
    compare.main(settings("vppo", "grpo"))
    assert "0 of 6 runs to do" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_levels_are_reached_earlier_by_the_faster_method(methods, tmp_path):
    compare.main(settings("vppo", "grpo", controls=False))
    result = json.loads((tmp_path / "results/vppo.json").read_text())["methods"]
    levels = list(result["vppo"]["levels"])
    assert len(levels) == 4
    quick, slow = (result[name]["levels"][levels[0]] for name in ("vppo", "grpo"))
    assert max(quick["tokens"]) < min(slow["tokens"])
    assert quick["tokens"] == [100 * updates for updates in quick["updates"]]
    assert result["grpo"]["levels"][levels[-1]]["tokens"] == [None, None]


def test_goes_on_after_a_stop(methods, tmp_path):
    args = settings("vppo", controls=False, seeds=1)
    (entry,) = compare.contenders(args)
    entry.folder.mkdir(parents=True)
    (entry.folder / "stop").touch()
    with pytest.raises(SightRLError, match=r"1 runs did not finish:\nvppo, seed 0 \(exit status 3"):
        compare.main(args)
    assert len(outcomes.read_metrics(entry.run(0) / "metrics.jsonl")) == 1
    (entry.folder / "stop").unlink()
    compare.main(args)
    steps = [row["step"] for row in outcomes.read_metrics(entry.run(0) / "metrics.jsonl")]
    assert steps == list(range(30))  # continued, not started again


def test_runs_made_by_another_common_are_counted(tmp_path):
    def git(*words: str) -> str:
        call = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    commits = []
    for text in ("old", "new"):
        (tmp_path / "common").mkdir(exist_ok=True)
        (tmp_path / "common/a.py").write_text(text)
        git("add", ".")
        git("commit", "-qm", text)
        commits.append(git("rev-parse", "HEAD").strip())
    unknown = [None, "0" * 40, "--output=x", "abc"]
    assert made_by_other_code([*commits, *commits, *unknown], tmp_path) == 2
    (tmp_path / "common/a.py").write_text("newer")  # not committed
    assert made_by_other_code([*commits, *unknown], tmp_path) == 2
    assert made_by_other_code(commits, tmp_path / "common/nowhere") == 0
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "is empty: the run trained no step; give more --budget-tokens"),
        ([{"step": 0, "tokens_generated": 9}, {"step": 1}], "step 1 has no tokens_generated; let the method log it"),
    ],
)
def test_metrics_that_cannot_be_compared_are_named(rows, problem, tmp_path):
    """A method of one's own may log what it likes; the budget of tokens is what runs are compared by."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SightRLError, match=f"metrics.jsonl:? {problem}"):
        outcomes.read_metrics(tmp_path / "metrics.jsonl")


def test_a_folder_without_a_description_is_started_again(methods):
    args = settings("vppo", controls=False, seeds=1)
    (entry,) = compare.contenders(args)
    entry.run(0).mkdir(parents=True)
    (entry.run(0) / "rubbish").touch()
    compare.main(args)
    assert entry.finished(0) and not (entry.run(0) / "rubbish").exists()


def test_ctrl_c_stops_the_runs_and_the_next_start_continues(methods, tmp_path):
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'eval')!r})\n"
            "import compare; from pathlib import Path; from common.errors import main_guard\n"
            f"compare.METHODS = Path({str(methods)!r}); compare.CONTROLS = compare.SETTINGS = {{}}\n"
            "main_guard(compare.main, compare.Args(methods=('vppo --patience 0.05',), seeds=2, jobs=2,\n"
            "           budget_tokens=100_000))")  # fmt: skip
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore Ctrl-C
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("runs/compare/*/seed*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on later" in out
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("runs/compare/*/seed*/metrics.jsonl"))]
    time.sleep(0.3)
    assert sizes == [p.stat().st_size for p in sorted(tmp_path.glob("runs/compare/*/seed*/metrics.jsonl"))]
    assert len(sizes) == 2 and min(sizes) > 0


def test_different_budgets_are_refused(methods):
    common = dict(allow_different_budgets=False, controls=False, seeds=1)
    with pytest.raises(SightRLError, match=r"differ in --budget-tokens; give --allow-different-budgets"):
        compare.main(settings("vppo --goal 0.8", "grpo --budget-tokens 2000", **common))
    with pytest.raises(SightRLError, match='"vppo --early" seed 0 ended after 700 of 3,000 tokens'):
        compare.main(settings("vppo --early", **common))
    compare.main(settings("vppo --early", **common | {"allow_different_budgets": True}))


def test_different_questions_are_refused(methods):
    args = settings("vppo", seeds=2, controls=False)
    compare.main(args)
    (entry,) = compare.contenders(args)
    path = entry.run(1) / "eval_after.json"
    evaluation = json.loads(path.read_text())
    evaluation["records"][0]["id"] = "another"
    path.write_text(json.dumps(evaluation))
    with pytest.raises(SightRLError, match="seed1 asked other held-out questions"):
        compare.main(args)


def test_unknown_methods_and_wrong_options(methods, capsys):
    for name in ("nothing", "../vppo", ""):
        with pytest.raises(SightRLError, match=r"there is no method .*; methods/ has grpo, vppo"):
            compare.main(settings(name))
    with pytest.raises(SightRLError, match="name the methods to compare"):
        compare.main(settings())
    with pytest.raises(SightRLError, match="--seeds"):
        compare.main(settings("vppo", seeds=0))
    with pytest.raises(SystemExit):
        compare.main(settings("vppo --gaol 0.5"))
    assert "gaol" in capsys.readouterr().err


def test_the_key_stands_for_options_and_code_but_not_comments(methods):
    def folder(*names: str, **options) -> Path:
        return compare.contenders(settings(*names, controls=False, **options))[0].folder

    first = folder("vppo")
    assert first == folder("vppo", jobs=1, seeds=9) == folder("  vppo  ")
    others = [folder("vppo", budget_tokens=5), folder("vppo --goal 1"), folder("vppo", options="--eval-k 3")]
    assert len({first, *others}) == 4
    source = (methods / "vppo.py").read_text()
    (methods / "vppo.py").write_text(source.replace("A fake.", "Another text.") + "\n# a remark\n")
    assert folder("vppo") == first
    (methods / "vppo.py").write_text(source.replace("step / 20", "step / 21"))
    assert folder("vppo") != first


def test_grpo_takes_part_as_the_dapo_that_vppo_builds_on():
    def options(label: str) -> dict:
        entry = compare.contender(label, compare.Args(methods=()))
        return vars(compare.effective_args(compare.load_method(entry.method), list(entry.flags)))

    grpo, vppo = options("grpo"), options("vppo")
    shared = {f.name for f in fields(compare.load_method("grpo").Args)} - {"variant"}
    assert {n: grpo[n] for n in shared} == {n: vppo[n] for n in shared}
    assert grpo["entropy_coef"] == 0.06 and grpo["filter_groups"] == "mean" and grpo["clip_high"] == 0.28
    control = options(compare.CONTROLS["vppo"][0])
    assert {n for n in vppo if vppo[n] != control[n]} == {"mask_source"}
    assert "57.5" in compare.claim("vppo") and compare.claim("grpo") == ""


# ---------------------------------------------------------------- statistics


def test_two_way_bootstrap_knows_both_kinds_of_variation():
    generator = np.random.default_rng(0)
    questions = generator.normal(size=400)
    only_questions = np.tile(questions, (5, 1))
    low, high = stats.estimate(only_questions)["interval"]
    assert high - low == pytest.approx(2 * 1.96 * questions.std() / 20, rel=0.05)
    seeds = np.repeat(generator.normal(size=(40, 1)), 10, axis=1)
    low, high = stats.estimate(seeds)["interval"]
    assert high - low == pytest.approx(2 * 1.96 * seeds[:, 0].std() / 40**0.5, rel=0.05)
    assert stats.estimate(np.full((3, 7), 0.25)) == {"score": 0.25, "interval": [0.25, 0.25]}


def test_paired_differences_cancel_what_both_share():
    questions = np.random.default_rng(1).normal(size=(5, 200))
    pair = stats.paired_difference(questions + 0.1, questions)
    assert pair["difference"] == pytest.approx(0.1) and pair["interval"] == pytest.approx([0.1, 0.1])


def test_probability_of_improvement():
    better, worse = np.array([[0.9, 0.5], [0.8, 0.5]]), np.array([[0.1, 0.5], [0.2, 0.5]])
    assert stats.probability_of_improvement(better, worse)["probability"] == 0.75  # a win and a tie
    assert stats.probability_of_improvement(worse, better)["probability"] == 0.25
    mixed = stats.probability_of_improvement(np.array([[0.0], [1.0]]), np.array([[0.5], [0.5]]))
    assert mixed == {"probability": 0.5, "interval": [0.0, 1.0]}


def test_interquartile_mean_ignores_the_outer_quarters():
    scores = np.array([[0.0, 0.5], [0.4, 0.5], [0.6, 0.5], [9.0, 0.5]])  # one run broke, one was lucky
    found = stats.interquartile_mean(scores)
    assert found["score"] == pytest.approx(0.5) and found["interval"][0] <= 0.5 <= found["interval"][1]
    equal = stats.interquartile_mean(np.full((5, 3), 0.7))
    assert equal["score"] == pytest.approx(0.7) and equal["interval"] == pytest.approx([0.7, 0.7])


def test_the_page_has_every_run_s_curve_and_lets_nothing_in(methods, tmp_path):
    compare.main(settings("vppo", "vppo --prompt <script>{question}", "grpo"))
    page = (tmp_path / "runs/compare/vppo.html").read_text()
    accuracy = page.split("<h3>Training accuracy</h3>")[1].split("<h3>")[0]
    labels = ["All", "vppo", "vppo --goal 0.5", "vppo --prompt &lt;script&gt;{question}", "grpo"]
    assert re.findall("<figcaption><b>(.*?)</b>", accuracy) == labels
    assert accuracy.count('<polyline class="line s0"') == 1 + 2  # the mean, and a line per seed
    assert "<script" not in page and "Content-Security-Policy" in page and "0.250 → 0.905" in page
    compare.main(replace(settings("vppo", "grpo"), name="tried/one"))
    assert (tmp_path / "results/tried/one.json").is_file() and (tmp_path / "runs/compare/tried/one.html").is_file()


def test_reaching_a_level():
    values = stats.smoothed(np.array([0.0, 0.9, 0.1, 0.6, 0.8]), 2)
    assert stats.first_reach(values, 0.45) == 1 and stats.first_reach(values, 0.7) == 4
    assert stats.first_reach(values, 0.71) is None


def test_ends_of_the_bins():
    edges = np.linspace(0, 100, 5)
    curve = stats.binned(np.array([25, 26, 100]), np.array([1.0, 2.0, 3.0]), edges)
    assert curve.tolist() == [1.0, 2.0, 2.0, 3.0]
    assert stats.binned(np.array([60.0]), np.array([7.0]), edges).tolist() == [7.0] * 4


def test_help_of_the_scripts():
    for script, word in (("compare.py", "--budget-tokens"), ("run.py", "--benchmarks")):
        done = subprocess.run([sys.executable, str(ROOT / "eval" / script), "--help"], capture_output=True,
                              text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
        assert done.returncode == 0 and word in done.stdout
