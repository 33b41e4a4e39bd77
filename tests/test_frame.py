"""run.sh with a stand-in for Python that installs nothing; rules for every file."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")
CODE = sorted(p for folder in ("common", "methods", "eval", "tests") for p in (ROOT / folder).rglob("*.py"))
METHODS = sorted(p.stem for p in (ROOT / "methods").glob("*.py"))

# Stands in for python3.13 and for .venv/bin/python: notes what is asked in calls.log, installs nothing.
STAND_IN = """#!{bash}
case "$*" in
    "-m venv"*) mkdir -p "${{!#}}/bin"; cp "$0" "${{!#}}/bin/python"; echo "venv" >>"{log}" ;;
    *"-m pip --version"*) ;;
    *"-m pip"*) echo "pip ${{*: -2}}" >>"{log}"; sleep "${{PIP_SECONDS:-0}}"
        case "$*" in *"${{PIP_FAILS:-never}}"*) echo "no such thing"; exit 1 ;; esac ;;
    "-c "*) exec {python} "$@" ;;
    *) echo "ran $*" >>"{log}"; echo "ran $*"; exit "${{EXIT:-0}}" ;;
esac
"""


class Copy:
    """A copy of run.sh and of what it reads, in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root, self.log, self.bin = folder / "a clone", folder / "calls.log", folder / "bin"
        for name in ("methods", "eval", ".ci"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("run.sh", "requirements.txt", "requirements-gpu.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir()
        self.program("python3.13", STAND_IN.format(log=self.log, bash=BASH, python=sys.executable))

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.root), **extra}

    def run(self, *words: str, script: str = "run.sh", cwd: Path | None = None, **extra: str):
        return subprocess.run([BASH, str(self.root / script), *words], cwd=cwd or self.root.parent, text=True,
                              capture_output=True, env=self.environment(**extra), timeout=60)  # fmt: skip

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def clone(tmp_path) -> Copy:
    return Copy(tmp_path)


# ---------------------------------------------------------------- run.sh


def test_help_needs_no_environment(clone):
    for words in ([], ["help"], ["--help"]):
        done = clone.run(*words, PATH="/usr/bin:/bin")
        assert done.returncode == 0
        for name in METHODS:
            first = ast.get_docstring(ast.parse((ROOT / f"methods/{name}.py").read_text())).splitlines()[0]
            assert re.search(rf"^  {name} +{re.escape(first)}$", done.stdout, re.MULTILINE)
        words_known = ("test", "eval", "compare", "bench", "bench_scaling", "profile_step", "help")
        assert all(f"./run.sh {word}" in done.stdout for word in words_known)
    assert not (clone.root / ".venv").exists()


@pytest.mark.parametrize("word", ["vpo", "--seed", "../x", "methods/vppo.py", "_x"])
def test_unknown_command(clone, word):
    done = clone.run(word)
    assert done.returncode == 2 and f"no command or method '{word}'" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and all(name in done.stderr for name in METHODS)
    assert word != "vpo" or "did you mean vppo" in done.stderr
    assert not (clone.root / ".venv").exists()


def test_builds_once_and_again_when_the_requirements_change(clone, tmp_path):
    first = clone.run("vppo", "--seed", "3", "--data", "jsonl:my file.jsonl")
    assert first.returncode == 0 and "Building the environment" in first.stderr
    script = clone.root / "methods/vppo.py"
    assert first.stdout == f"ran {script} --seed 3 --data jsonl:my file.jsonl\n"
    assert [call.split()[0] for call in clone.calls()] == ["venv", "pip", "pip", "ran"]
    again = clone.run("grpo", cwd=Path("/"))
    assert again.stderr == "" and clone.calls()[4:] == [f"ran {clone.root}/methods/grpo.py"]
    with open(clone.root / "requirements.txt", "a") as file:
        file.write("another==1.0\n")
    changed = clone.run("grpo")
    assert "Building" in changed.stderr
    assert [call.split()[0] for call in clone.calls()[5:]] == ["pip", "pip", "ran"]  # the venv itself is kept
    moved = clone.root.rename(tmp_path / "elsewhere")
    clone.root = moved
    assert "Building" in clone.run("grpo").stderr  # the editable install knows the old place


def test_commands_and_status(clone):
    for word, script in (("eval", "eval/run.py"), ("compare", "eval/compare.py"),
                         ("bench", "eval/bench_step.py"), ("bench_scaling", "eval/bench_scaling.py"),
                         ("profile_step", "eval/profile_step.py")):  # fmt: skip
        done = clone.run(word, "--k", "2", EXIT="7")
        assert done.returncode == 7 and done.stdout == f"ran {clone.root / script} --k 2\n"
    done = clone.run("test", "-k", "some thing", EXIT="1")
    assert done.returncode == 1
    assert done.stdout == "".join(
        f"ran -m {words}\n"
        for words in ("ruff check --output-format concise .", "ruff format --check --quiet .", "pytest -k some thing")
    )
    assert clone.run("test").returncode == 0


def test_ci_uses_nothing_of_the_caller(clone):
    done = clone.run(script=".ci/run", VIRTUAL_ENV="/nowhere", PYTHONPATH="/nowhere", EXIT="5")
    assert done.returncode == 5 and done.stdout.endswith("ran -m pytest\n")
    assert (clone.root / ".venv/bin/python").exists()


def test_an_active_environment_is_not_used(clone, tmp_path):
    active = tmp_path / "active"
    (active / "bin").mkdir(parents=True)
    shutil.copy(clone.bin / "python3.13", active / "bin/python3.13")
    (active / "bin/python3.13").write_text("#!/bin/sh\necho wrong python >&2\nexit 9\n")
    path = f"{active}/bin:{clone.bin}:/usr/bin:/bin"
    done = clone.run("grpo", VIRTUAL_ENV=str(active), PATH=path, PYTHONPATH="/nowhere", PYTHONHOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert "wrong" not in done.stderr


def test_a_failed_installation_shows_the_log_and_is_tried_again(clone):
    done = clone.run("grpo", PIP_FAILS="requirements.txt")
    assert done.returncode == 2 and "no such thing" in done.stderr
    assert "error: installing requirements.txt failed" in done.stderr and done.stdout == ""
    assert clone.run("grpo").returncode == 0


def test_without_a_fitting_python(clone):
    clone.program("python3.13", "#!/bin/sh\nexit 1\n")
    for name in ("python3.12", "python3.11", "python3"):  # hide those of the machine
        clone.program(name, "#!/bin/sh\nexit 1\n")
    done = clone.run("grpo")
    assert done.returncode == 2 and "needs Python 3.11 or newer" in done.stderr


def test_two_at_once_build_one_environment(clone):
    results = []
    work = lambda: results.append(clone.run("grpo", PIP_SECONDS="0.5"))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0, 0], [done.stderr for done in results]
    kinds = [call.split()[0] for call in clone.calls()]
    assert kinds == ["venv", "pip", "pip", "ran", "ran"]
    assert sum("Waiting for another" in done.stderr for done in results) == 1


def test_gpu_requirements_only_with_a_gpu_and_never_fatal(clone):
    clone.run("grpo")
    assert not any("flash" in call for call in clone.calls())
    clone.program("nvidia-smi", "#!/bin/sh\nexit 0\n")
    done = clone.run("grpo", PIP_FAILS="flash-attn==")
    assert done.returncode == 0 and re.search(r"warning: flash-attn==\S+ could not be installed", done.stderr)
    before = len(clone.calls())
    assert clone.run("grpo").stderr == "" and len(clone.calls()) == before + 1  # not tried again every time


def test_run_sh_fits_bash_3_2():
    text = (ROOT / "run.sh").read_text()
    for newer in (r"declare -A", r"mapfile", r"readarray", r"\$\{\w+(\^|,)", r"&>>", r"\bcoproc\b"):
        assert not re.search(newer, text), newer
    assert not re.search(r'(?<!\+)"\$@"', text)  # with set -u, old versions stop at an empty "$@"
    for script in ("run.sh", ".ci/run"):
        assert subprocess.run([BASH, "-n", str(ROOT / script)]).returncode == 0
        assert os.access(ROOT / script, os.X_OK)


# ---------------------------------------------------------------- requirements and package


def test_pins_are_exact():
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-bench.txt"):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", line) for line in lines if line), name


def test_everything_imported_is_pinned_or_ours():
    texts = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-bench.txt")]
    pins = "".join(texts).lower().replace("-", "_")
    ours = {"common", "methods", "flash_attn", *(path.stem for path in CODE)}
    named = {"PIL": "pillow", "tokenizers": "transformers", "huggingface_hub": "transformers",
             "pyarrow": "datasets"}  # fmt: skip
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in {m.split(".")[0] for m in modules} - ours - set(sys.stdlib_module_names):
                assert named.get(module, module).lower() in pins, f"{path}: {module}"


# ---------------------------------------------------------------- rules for all files


def test_nothing_dangerous_is_called():
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not names & {"pickle", "torchvision", "triton", "marshal", "shelve"}, path
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in ("eval", "exec"), f"{path}:{node.lineno}"
                for word in node.keywords:
                    value = getattr(word.value, "value", None)
                    bad = {("shell", True), ("trust_remote_code", True), ("weights_only", False)}
                    assert (word.arg, value) not in bad, f"{path}:{node.lineno}"


def functions(folder: str):
    for path in CODE:
        if path.is_relative_to(ROOT / folder):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield path, node


def test_functions_are_short_but_for_the_loop_of_a_method():
    for folder in ("common", "eval", "methods"):
        for path, node in functions(folder):
            if folder != "methods" or node.name != "main":
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_files_of_common_are_not_too_long():
    for path in (ROOT / "common").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 500, path


def test_parameters_in_common_are_annotated():
    for path, node in functions("common"):
        for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            assert arg.annotation or arg.arg in ("self", "cls"), f"{path}: {node.name}({arg.arg})"


def test_imports_point_one_way():
    for path in CODE:
        if path.is_relative_to(ROOT / "common"):
            assert not re.search(r"^\s*(from|import) (methods|eval)\b", path.read_text(), re.MULTILINE), path


def test_examples_in_docstrings():
    paths = [p for p in CODE if not p.is_relative_to(ROOT / "tests") and ">>>" in p.read_text()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("eval.") for path in paths]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert not [name for name, result in results.items() if result.failed]
    assert sum(result.attempted for result in results.values()) > 5
