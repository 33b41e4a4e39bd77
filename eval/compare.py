"""Train several methods under one budget over several seeds and say which is better, with intervals.

    ./run.sh compare vppo grpo --seeds 5
    ./run.sh compare mine "mine --lr 3e-4" grpo --seeds 5 --budget-tokens 500000

Each name is a file in methods/, options in quotes belong to it. A bare name brings its controls along, versions that
must not work if the method works for the reason its paper gives (CONTROLS in this file; SETTINGS are the options with
which grpo takes part). Every run generates the same number of tokens for training and is asked the same held-out
questions before and after. Runs live in runs/compare/<method>-<key>/seed<k>/; the key stands for all options and for
the code of the method's file (comments left out), so a finished run is used again exactly if these are unchanged;
after changing common/ (a note tells), delete the folders. A stopped comparison goes on when started again. Writes
results/<first method>.json and .png and runs/compare/<first method>.html, which has the learning curves of all runs
side by side, and prints a Markdown table. Three papers or more make an overview, without controls: the same files
named overview, and a table of every method and task family.

The code in reading order: compare.py (what is compared with what), processes.py (runs side by side), outcomes.py (what
they wrote, summed up), then what shows it: tables.py (Markdown), figures.py (PNG), compare_page.py (HTML).
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro

from common.args import SAME_EXPERIMENT, CommonArgs, parse_args
from common.errors import SightRLError, main_guard
from scripts import load_script

METHODS = Path(__file__).resolve().parent.parent / "methods"

# How a method takes part when only its name is given. grpo: DAPO exactly as VPPO builds on it.
SETTINGS = {"grpo": "--variant dapo --overlong-buffer 0 --dual-clip 3 --entropy-coef 0.06"}
# What must not work if the method works for the reason its paper gives. The arms of visurf make as many updates as it
# does with 300,000 tokens; those with SFT cost far fewer tokens, so this comparison needs --allow-different-budgets.
CONTROLS = {
    "vppo": ["vppo --mask-source random"],
    "visual_rft": ["visual_rft --supervised"],
    "perception_r1": ["perception_r1 --visual-weight 0"],
    "pearl": ["pearl --perception-coef 0 --no-gate --weight-cap 0", "pearl --checklist dense"],
    "vicrit": ["vicrit --images blank", "sft --world-habit caption --warmup 0 --lr 1e-4 --max-new-tokens 144"],
    "vision_sr1": ["vision_sr1 --no-self-reward"],
    "visionary_r1": ["visionary_r1 --caption-weight 0"],
    "vogue": ["vogue --alpha-visual 0 --alpha-entropy 0"],
    "ssl4rl": ["ssl4rl --ssl contrastive", "ssl4rl --ssl rotation --size-leak"],
    "visurf": ["visurf --variant grpo", "visurf --variant sft --steps 48", "visurf --variant sft_grpo --steps 48"],
}  # fmt: skip
CLAIMS = {
    "visual_rft": "rewards for boxes and confidences reach what SFT on the same pictures does not (COCO 4-shot mAP: "
    "base 19.6, SFT 25.2, Visual-RFT 40.6; novel classes 9.8, 13.6, 31.3; Qwen2-VL-2B).",
    "perception_r1": "GRPO on accuracy alone does not improve perception (McNemar p 0.69), a reward for stated visual "
    "facts does (p 0.04) and lifts accuracy (MathVista 73.3 to 74.2, MathVerse 51.3 to 54.3; 7B).",
    "pearl": "a checklist of the question's own facts that gates and weighs the reasoning beats GRPO (47.9 to 44.2,"
    " mean of six sets, 7B); a checklist of other facts does less (45.5).",
    "vicrit": "finding one wrong phrase in captions lifts other tasks (50.6 to 53.0, mean of 8 benchmarks, 7B); "
    "teaching the same captions by SFT does not (48.4).",
    "vision_sr1": "rewarding descriptions that suffice to answer beats GRPO on the same data (52.2 against 50.7, mean "
    "of 7 benchmarks, 7B) and lowers the language shortcut rate (9.8 against 10.1 without).",
    "visionary_r1": "caption first, rewarded by answering from it, with annealed KL, beats GRPO on the same data (69.4 "
    "against 61.8, MathVista, 3B).",
    "vogue": "a capped bonus for tokens whose prediction changes under a noisy picture beats GRPO (66.9 against 63.9, "
    "mean of 6 benchmarks, 7B) and keeps pass@4 up.",
    "ssl4rl": "the right self-supervised task lifts benchmarks without labels (+7.39 MMBench, +8.94 SEED-Bench, 3B); "
    "a wrong one does not, and mixing tasks does not add up.",
    "visurf": "with the label as one more rollout the model learns what GRPO never samples, without the forgetting of "
    "SFT (no numbers could be read).",
    "vppo": "learning only from the 40 % most picture-dependent tokens beats DAPO (57.5 against 55.0, mean "
    "of 8 benchmarks, Qwen2.5-VL-7B); as many tokens chosen at random do not (54.8).",
}


@dataclass
class Args:
    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Methods to compare, the one of interest first; "vppo --keep-share 0.2" has options of its own."""
    seeds: int = 5
    """Runs per method, with seeds 0, 1, ..."""
    budget_tokens: int = 1_000_000
    """Tokens every run generates for training."""
    eval_questions: int = 96
    """Held-out questions per split, asked before and after training."""
    eval_k: int = 8
    """Answers sampled per held-out question."""
    options: str = ""
    """Options for every run, e.g. --options="--data jsonl:my.jsonl --lr 3e-4"."""
    controls: bool = True
    """Also run a method's controls (vppo: the same share of tokens, chosen at random)."""
    jobs: int = 0
    """Runs side by side; 0: as many as cores, with a GPU one."""
    out: str = "runs/compare"
    """Folder of the runs."""
    results: str = "results"
    """Folder of the results."""
    name: str = ""
    """Name of the result files; default: the first method, or "overview" for more than two papers."""
    allow_different_budgets: bool = False
    """Compare even if the runs generated different numbers of tokens or met different questions."""


@dataclass(frozen=True)
class Contender:
    """A method with its options: one line of the table."""

    label: str  # as typed
    method: str
    flags: tuple[str, ...]  # all of them, shared ones too
    folder: Path  # of its runs
    settings: str = ""  # options it was given because only its name was typed

    @property
    def script(self) -> Path:
        return METHODS / f"{self.method}.py"

    def run(self, seed: int) -> Path:
        return self.folder / f"seed{seed}"

    def log(self, seed: int) -> Path:
        return self.folder / f"seed{seed}.log"

    def finished(self, seed: int) -> bool:
        return (self.run(seed) / "summary.json").is_file()


# ---------------------------------------------------------------- what is to be run


def contenders(args: Args) -> list[Contender]:
    """What is compared, controls right after their method. Raises SightRLError for unknown methods."""
    labels: list[str] = []
    for label in [" ".join(name.split()) for name in args.methods]:
        labels += [label, *(CONTROLS.get(label, []) if args.controls and not is_overview(args) else [])]
    if not labels:
        raise SightRLError(f"name the methods to compare, e.g.: ./run.sh compare vppo grpo; {known()}")
    return [contender(label, args) for label in dict.fromkeys(labels)]


def is_overview(args: Args) -> bool:
    return len({name.split()[0] for name in args.methods if name.split()} - {"grpo"}) > 2


def contender(label: str, args: Args) -> Contender:
    method, *own = shlex.split(label) or [""]
    if not re.fullmatch(r"[a-z0-9]\w*", method) or not (METHODS / f"{method}.py").is_file():
        raise SightRLError(f"there is no method {method!r}; {known()}")
    shared = ["--steps", "1000000", "--budget-tokens", str(args.budget_tokens),
              "--eval-questions", str(args.eval_questions), "--eval-k", str(args.eval_k)]  # fmt: skip
    settings = "" if own else SETTINGS.get(method, "")
    flags = [*shared, *shlex.split(args.options), *own, *shlex.split(settings)]
    slug = re.sub(r"[^a-z0-9._]+", "-", label.lower()).strip("-.")[:60]
    folder = Path(args.out) / f"{slug}-{key(method, flags)}"
    return Contender(label, method, tuple(flags), folder, settings)


def known() -> str:
    names = sorted(path.stem for path in METHODS.glob("*.py") if not path.stem.startswith("_"))
    return f"methods/ has {', '.join(names)}."


def key(method: str, flags: list[str]) -> str:
    """Eight hex digits for every effective option and the code of the method's file."""
    config = dataclasses.asdict(effective_args(load_method(method), flags))
    config = {name: value for name, value in config.items() if name not in SAME_EXPERIMENT}
    code = code_of((METHODS / f"{method}.py").read_text(encoding="utf-8"))
    return hashlib.sha256((json.dumps(config, sort_keys=True) + code).encode()).hexdigest()[:8]


def code_of(source: str) -> str:
    """A program without comments, docstrings and layout: equal for programs that do the same."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not is_text(line)]
    return ast.dump(tree)


def is_text(line: ast.stmt) -> bool:
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def load_method(method: str) -> ModuleType:
    """The method's file as a module; quick, because methods import torch only in main."""
    return load_script(METHODS / f"{method}.py")


def effective_args(module: ModuleType, flags: list[str]) -> CommonArgs:
    """What the method makes of the options; a wrong one ends the program with its usage."""
    tables = {"preset": getattr(module, "PRESETS", {}), "variant": getattr(module, "VARIANTS", {})}
    return parse_args(module.Args, "", list(flags), **{n: table for n, table in tables.items() if table})


def claim(method: str) -> str:
    """The paper's claim in one line: from CLAIMS, else the sentence of the docstring with "Published"."""
    text = " ".join((load_method(method).__doc__ or "").split())
    published = re.search(r"Published[^:]{0,100}: [^.]{0,200}(?:\.\d[^.]{0,200})*", text)
    return CLAIMS.get(method) or (published[0].strip() if published else "")


# ---------------------------------------------------------------- all of it


def main(args: Args) -> None:
    import figures  # slow, like all of these: most of them import torch, and --help must not wait for it
    import tables
    from common.checkpoint import write_json
    from compare_page import write_page
    from outcomes import check_same_budget, read_outcome, summarise
    from processes import default_jobs, made_by_other_code, run_all

    if min(args.seeds, args.budget_tokens, args.eval_questions, args.eval_k) < 1:
        raise SightRLError("--seeds, --budget-tokens, --eval-questions and --eval-k must be at least 1.")
    if args.jobs < 0:
        raise SightRLError(f"--jobs must be 0 (as many as cores) or more, not {args.jobs}.")
    entries = contenders(args)
    run_all(entries, args.seeds, args.jobs or default_jobs())
    outcomes = [read_outcome(entry, args.seeds) for entry in entries]
    if not args.allow_different_budgets:
        check_same_budget(outcomes)
    result = summarise(outcomes, claim(entries[0].method))
    default = "overview" if is_overview(args) else entries[0].folder.name.rpartition("-")[0]
    folder, name = Path(args.results), args.name or default
    page = Path(args.out) / f"{name}.html"
    for file in (folder / name, page):  # a name may have folders
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    many = is_overview(args)
    (figures.overview if many else figures.comparison)(result, folder / f"{name}.png")
    write_page(result, outcomes, page)
    table = tables.overview(result) if many else tables.comparison(result)
    print(f"{table}\n\n{folder / name}.json\n{folder / name}.png\n{page}")
    commits = [about["git_commit"] for outcome in outcomes for about in outcome.about]
    if count := made_by_other_code(commits, METHODS.parent):
        print(f"note: {count} of {len(commits)} runs were made when common/ was another one; if what changed matters, "
              f"delete their folders in {args.out} and start again")  # fmt: skip


if __name__ == "__main__":
    main_guard(main, tyro.cli(Args, description=__doc__.partition("\n\nThe code")[0]))
