"""README, CONTRIBUTING and docs/ are true: their tables are those of results/, their commands run, their links lead
somewhere.

Commands run with the smallest model, a few tokens and made-up files in the place of downloads. Comparisons take minutes
even so: SIGHTRL_ALL_COMMANDS=1 runs them too, otherwise only their options are read.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from bench_rows import parquet, picture, verse, vista
from helpers import write_lines
from test_data_readers import nlvr, voc

import bench_scaling
import bench_step
import compare
import profile_step
from common.errors import SightRLError

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = dict(steps=1, budget_tokens=0, prompts_per_step=2, group_size=2, max_new_tokens=8, eval_questions=2, eval_k=1,
             batch_size=2, max_rounds=1, rollout_rows=0, mini_batch_prompts=0, max_target_tokens=200)  # fmt: skip
# What takes the place of downloads here. Presets of the papers are planned only (--dry-run): they need the real models.
INSTEAD = {r"Qwen/\S+": "random:qwen2_5_vl", r"hf:chamber111/VPPO_ViRL39K_train": "jsonl:my.jsonl"}


def blocks(path: Path) -> list[str]:
    """Commands of a text, without comments, one a line."""
    lines = []
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lines += [command] if (command := re.split(r"\s#\s", line)[0].strip()) else []
    return lines


COMMANDS = sorted({line for path in TEXTS for line in blocks(path)})
METHODS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))


def words_of(command: str) -> list[str]:
    """./run.sh NAME ... and python methods/NAME.py ... as [NAME, ...]; [] for everything else."""
    found = re.match(r"(?:\./run\.sh|python methods/(?=\w+\.py)) ?(\w+)(?:\.py)?(.*)", command)
    return [found[1], *shlex.split(found[2])] if found else []


TRAINING = [c for c in COMMANDS if (w := words_of(c)) and w[0] in [*METHODS, "mine"]]
EVALUATIONS = [c for c in COMMANDS if words_of(c)[:1] == ["eval"]]
COMPARISONS = [c for c in COMMANDS if words_of(c)[:1] == ["compare"]]
OTHERS = [c for c in COMMANDS if c not in {*TRAINING, *EVALUATIONS, *COMPARISONS}]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to run commands in: methods with a copy named mine, own data, published rows, a trained run."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "methods", folder / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "eval", folder / "eval", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "methods/vppo.py", folder / "methods/mine.py")
    for i in range(30):
        (folder / "bccd").mkdir(exist_ok=True)
        voc(folder / "bccd", f"cell{i}", [("WBC", (20, 20, 60, 60)), ("RBC", (60, 60, 90, 90))], size=(112, 112))
    nlvr(folder / "nlvr", examples=24)
    (folder / "pictures").mkdir()
    picture().save(folder / "pictures/1.png")
    own = {"question": "How many cups?", "answer": "3", "problem": "How many cups?", "solution": "3"}
    for i in range(40):  # a picture each: pictures are what splits are cut by
        picture(112, 84 + i).save(folder / f"{i}.png")
    star = {"image": "pictures/1.png", "question": "How many stars are there?", "answer": "3", "kind": "bright"}
    for name, some in {"my": [own | {"image": f"{i}.png"} for i in range(40)], "rows": [star]}.items():
        write_lines(folder / f"{name}.jsonl", some)
    return folder


def small(args, **more):
    """The same options, for a run of seconds."""
    known = {field.name for field in dataclasses.fields(args)}
    return dataclasses.replace(args, **{k: v for k, v in (SMALL | more).items() if k in known})


@pytest.mark.parametrize("command", TRAINING)
def test_training_commands_run(command, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(compare, "METHODS", place / "methods")
    for pattern, other in INSTEAD.items():
        command = re.sub(pattern, other, command)
    name, *options = words_of(command)
    module = compare.load_method(name)
    if "--help" in options:
        with pytest.raises(SystemExit, match="0"):
            compare.effective_args(module, options)
        return
    args = compare.effective_args(module, options)
    if args.dry_run or args.preset != "tiny":
        return module.main(dataclasses.replace(args, dry_run=True))
    known = args.data != "world" and not args.model.startswith("runs/")  # no run was made before
    args = small(args, model=args.model if known else "tiny", resume="", run_name="", max_minutes=0.0, shots=0)
    module.main(args)
    newest = max((place / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert (newest / "summary.json").is_file() and (newest / "report.html").is_file()


def test_every_kind_of_command_is_known():
    """A new kind of command in a text needs a test here."""
    known = (r"\./run\.sh( help| test\b.*| bench\b.*| bench_scaling\b.*| profile_step\b.*)?$", r"bash \.ci/run$",
             r"\.venv/bin/(python|pip) .*", r"(cp|diff) methods/\w+\.py methods/\w+\.py$", r"hf download .*",
             r"torchrun .*", r"pip install .*", r"python -m .*", r"mkdocs .*", r"SIGHTRL_\w+=\S+ .*")  # fmt: skip
    assert [c for c in OTHERS if not any(re.match(pattern, c) for pattern in known)] == []
    assert len(TRAINING) > 10 and len(COMPARISONS) > 10 and len(EVALUATIONS) > 10


def run(words: list[str], folder: Path) -> None:
    """python with these words, which must end well."""
    done = subprocess.run([sys.executable, *words], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


CHECK = ".venv/bin/python docs/make_pages.py --check"


def test_pages_and_tables_are_those_of_code_and_results():
    """The command of the texts that checks it, run once: it makes all pages. The same without --check mends them."""
    assert CHECK in OTHERS
    run(shlex.split(CHECK)[1:], ROOT)


# Writing the pages is what the check does, and then writes; it would write them here.
@pytest.mark.parametrize(
    "command", [c for c in OTHERS if c.startswith(".venv/bin/python ") and not CHECK.startswith(c)]
)
def test_other_python_commands_run(command, place):
    run(shlex.split(command)[1:], place)


def test_files_and_variables_in_commands_exist():
    for command in [c for c in OTHERS if "mine" not in c and not c.startswith("hf ")]:
        for name in re.findall(r"(?<![\w./])(?:tests|methods|docs|eval|\.ci)(?:/[\w.]+)+", command):
            assert (ROOT / name).exists(), command
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = {name for command in COMMANDS for name in re.findall(r"\bSIGHTRL_\w+", command)}
    assert names and all(f'"{name}"' in tests for name in names)


PLANS = {"compare": compare.Args, "bench": bench_step.Args, "bench_scaling": bench_scaling.Args,
         "profile_step": profile_step.Args}  # fmt: skip


@pytest.mark.parametrize("command", [c for c in COMMANDS if words_of(c)[:1] and words_of(c)[0] in PLANS])
def test_options_of_long_commands_are_understood(command, place, monkeypatch):
    """They are read, and the methods of a comparison with theirs; nothing is run."""
    monkeypatch.setattr(compare, "METHODS", place / "methods")
    name, *options = words_of(command)
    args = tyro.cli(PLANS[name], args=options)
    assert name != "compare" or compare.contenders(args)


@pytest.fixture(scope="module")
def evaluated(place) -> Path:
    """What commands about results need: runs of a model, of another, and their answers."""
    script = compare.load_script(place / "eval/run.py")
    parquet(place / "MathVista.parquet", [vista("3") | {"pid": str(i)} for i in range(3)])
    parquet(place / "testmini.parquet", [verse("A") | {"sample_index": str(i)} for i in range(3)])
    (place / "MathVista").mkdir()
    shutil.move(place / "MathVista.parquet", place / "MathVista/testmini-0.parquet")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/benchmarks.md").read_text(), re.DOTALL)
    text = next(block for block in examples if "BENCHMARKS" in block)
    (place / "my_bench.py").write_text(text)
    old = Path.cwd()
    os.chdir(place)
    try:
        for name in ("qwen3b", "mine", "base"):
            script.main(script.parse([*ROWS, "--benchmarks", "mathvista,mathverse", "--run-name", name, *QUICK]))
    finally:
        os.chdir(old)
    answers = place / "runs/eval/qwen3b/mathvista/predictions.jsonl"
    for name in ("samples.jsonl", "samples_mathvista.jsonl"):
        shutil.copy(answers, place / name)
    return place


QUICK = ["--model", "tiny", "--max-new-tokens", "4", "--limit", "2"]
ROWS = ["--data", "mathvista=MathVista", "mathverse=testmini.parquet"]
LATER = r"charades|xlsx|samples_mathvista_testmini|--judge|runs/my-run|runs/mine/model"  # not made here


@pytest.mark.parametrize("command", [c for c in EVALUATIONS if re.search(LATER, c) and "--resume" not in c])
def test_options_of_other_evaluations_are_understood(command):
    """What they would read is not made here."""
    script = compare.load_script(ROOT / "eval/run.py")
    assert script.parse(words_of(command)[1:]).benchmarks


@pytest.mark.parametrize("command", [c for c in EVALUATIONS if not re.search(LATER, c)])
def test_evaluation_commands_run(command, evaluated, monkeypatch, capsys):
    monkeypatch.chdir(evaluated)
    script = compare.load_script(evaluated / "eval/run.py")
    options = words_of(re.sub(r"Qwen/\S+", "tiny", command))[1:]
    asks = not {"--list", "--compare", "--predictions", "--resume"} & set(options)
    published = "mathv" in command and "--data" not in options and "--list" not in options
    options += ROWS[: 3 if "mathverse" in command else 2] if published and "--resume" not in options else []
    options += ["--max-new-tokens", "4", "--limit", "2"] if asks else []
    if "--k" in options:
        options[options.index("--k") + 1] = "2"
    if "--run-name" in options:
        options[options.index("--run-name") + 1] += "-again"
    script.main(script.parse(options))
    assert capsys.readouterr().out


@pytest.mark.skipif(not os.environ.get("SIGHTRL_ALL_COMMANDS"), reason="minutes: SIGHTRL_ALL_COMMANDS=1 runs them")
@pytest.mark.parametrize("command", COMPARISONS)
def test_comparisons_run(command, place):
    options = "--options=--prompts-per-step 2 --group-size 2 --max-new-tokens 8"
    if "sft" in command or "options" in command:
        options = "--options=--max-new-tokens 80"
    run(["eval/compare.py", *words_of(command)[1:], "--seeds", "1", "--budget-tokens", "20", "--eval-questions", "2",
         "--eval-k", "1", options, "--allow-different-budgets"], place)  # fmt: skip


# ---------------------------------------------------------------- links


def test_contributing_lists_every_file_of_common_once():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = []
    for folder, names in re.findall(r"<!-- table: files/([\w/]+):?(\S*) -->", text):
        listed += [ROOT / folder / f"{n}.py" for n in names.split(",")] if names else (ROOT / folder).glob("*.py")
    assert sorted(listed) == sorted({*(ROOT / "common").rglob("*.py")} - {ROOT / "common/__init__.py"})


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|<!--.*?-->", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in [t for t in targets if not t.startswith("http")]:
        name, _, part = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if part:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert part in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], target


def test_every_page_is_in_the_site():
    """And every page of the site is there."""
    named = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(named) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


def test_the_site_has_every_file_that_a_page_links_to(monkeypatch):
    """mkdocs is no requirement: a stand-in for the one thing of it that docs/site_links.py needs."""
    File = SimpleNamespace(generated=lambda config, name, content: (ROOT / "docs" / name, content))
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", SimpleNamespace(File=File))
    site = compare.load_script(ROOT / "docs/site_links.py")
    made = dict(site.on_files([], None))
    assert made[ROOT / "docs/files/common/tools.py.txt"] == (ROOT / "common/tools.py").read_bytes()
    for path in (ROOT / "docs").rglob("*.md"):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=str(path.relative_to(ROOT / "docs"))))
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", site.on_page_markdown(path.read_text(), page)):
            file = Path(os.path.normpath(path.parent / target))
            assert file in made or file.is_file() and file.is_relative_to(ROOT / "docs"), (path, target)


def test_wrong_options_in_a_text_would_be_noticed(place, monkeypatch):
    monkeypatch.setattr(compare, "METHODS", place / "methods")
    with pytest.raises(SystemExit):
        compare.effective_args(compare.load_method("vppo"), ["--no-such-option"])
    with pytest.raises(SightRLError):
        compare.contenders(tyro.cli(compare.Args, args=["nothing"]))
    with pytest.raises(SystemExit):
        tyro.cli(bench_step.Args, args=["--no-such-option"])
