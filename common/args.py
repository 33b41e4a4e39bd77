"""Command-line options: what every method shares, presets, and `parse_args`. Light on purpose: --help must
not wait for torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from common.errors import SightRLError, stop

# Options that change neither what a run computes nor when it ends,
BOOKKEEPING = frozenset(["resume", "run_name", "out", "wandb", "checkpoint_every", "keep_checkpoints", "allow_outside",
                         "device", "dry_run", "gpus"])  # fmt: skip
# those that may change between two sittings of one run (any other would make the resumed run another run),
MAY_DIFFER = BOOKKEEPING | {"steps", "max_minutes", "budget_tokens"}
# and those in which runs may differ that are repetitions of one experiment.
SAME_EXPERIMENT = BOOKKEEPING | {"seed", "log_rollouts_every", "base_from"}
PROMPT = "{question}\nThink inside <think> </think>, then give the final answer in \\boxed{}."


@dataclass
class CommonArgs:
    """Model, data and run: the options that are the same for every method. A method's Args adds its own."""

    # ---- model
    model: str = "tiny"
    """Model to train: "tiny" (2 M parameters, ships with the repository), a folder, or a Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto: bfloat16 on a GPU, float32 otherwise."""
    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    train_vision: bool = True
    """Train the vision tower too (the papers do); off, its features are computed once and reused."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the language model; 0 trains all weights."""
    lora_alpha: int | None = None
    """LoRA scaling; default twice the rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    min_pixels: int | None = None
    """Smaller images are enlarged to this many pixels; default: the model's own setting."""
    max_pixels: int | None = None
    """Larger images are shrunk to this many pixels; default: the model's own setting."""

    # ---- data
    data: str = "world"
    """Questions about pictures: world, jsonl:FILE, parquet:FILE, hf:NAME, voc:DIR, coco:FILE, nlvr:DIR,
    puzzlevqa:DIR, ..."""
    columns: str = ""
    """Names of your columns if they differ from question, answer, images: "question=problem,answer=label"."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What to do about a row that cannot be read: stop with its number, or skip and count it."""
    allow_outside: bool = False
    """Let rows name pictures outside the folder of the data, also through links; off, such a row cannot be used."""
    tasks: str = ""
    """Use only these kinds of questions, e.g. count,locate; default: all the data has."""
    limit: int | None = None
    """Use only so many rows of the data."""
    prompt: str = PROMPT
    """Text around the question; {question} is replaced."""

    # ---- run
    steps: int = 150
    """Training steps (one rollout and its update each)."""
    budget_tokens: int = 0
    """Stop after so many generated tokens, so that methods can be compared fairly; 0: no limit."""
    max_minutes: float = 0.0
    """Stop after so many minutes of training; 0: no limit."""
    seed: int = 0
    """Seed of everything random: weights of new layers, data order, sampling."""
    eval_questions: int = 96
    """Held-out questions per split, asked before and after training; 0: no evaluation."""
    eval_k: int = 8
    """Answers sampled per held-out question: avg@k and pass@k."""
    base_from: str = ""
    """Run folder with the same model and questions: its evaluation before training is taken over, not repeated."""
    eval_every: int = 0
    """Also ask the validation questions every so many steps (greedy answers); 0: never."""
    log_rollouts_every: int = 10
    """Write one group of responses to rollouts.jsonl every so many steps, for the report; 0: never."""
    out: str = "runs"
    """Folder that holds the run folders."""
    run_name: str = ""
    """Name of this run's folder; default: method, data, seed and time."""
    resume: str = ""
    """Run folder to continue from its newest checkpoint, with its options; "auto": the newest fitting one."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are removed."""
    wandb: bool = False
    """Mirror the metrics to Weights & Biases."""
    dry_run: bool = False
    """Print the plan (every option and why, parameters, memory per GPU) and stop; needs no weights."""
    gpus: int = 1
    """GPUs the --dry-run memory estimate is made for."""


A = TypeVar("A", bound=CommonArgs)


def parse_args(cls: type[A], doc: str, argv: list[str] | None = None, **choices: dict[str, dict]) -> A:
    """The options typed by the user on top of the defaults they chose.

    choices: option name -> {its value -> defaults it sets}, e.g. preset={"tiny": {}, "paper-7b": {"lr":
    1e-6}}; later tables win over earlier ones, and anything typed wins over all. With --resume FOLDER the
    defaults are that run's options. Ends the program like argparse on --help and on bad options.
    """
    import tyro  # here: method files can be imported for their functions without it

    argv = sys.argv[1:] if argv is None else argv
    defaults = chosen_defaults(cls, argv, choices)
    saved = Path(typed(argv, "resume") or "auto") / "config.json"
    if saved.is_file():
        try:
            defaults |= saved_options(cls, saved)
        except SightRLError as error:
            stop(error)
    return tyro.cli(cls, args=argv, default=cls(**defaults), description=unwrapped(doc) + what_is_set(choices))


def what_is_set(choices: dict[str, dict[str, dict]]) -> str:
    """For --help: the options that every preset and variant sets, a line each."""
    lines = [f"--{option} {value} sets {' '.join(as_flag(*pair) for pair in defaults.items())}"
             for option, table in choices.items() for value, defaults in table.items() if defaults]  # fmt: skip
    return "\n".join(["\n", *lines]) if lines else ""


def as_flag(name: str, value: Any) -> str:
    """One option as it would be typed, long texts cut."""
    flag, text = name.replace("_", "-"), " ".join(str(value).split())
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {shlex.quote(text if len(text) <= 60 else text[:50] + '...')}"


def unwrapped(doc: str) -> str:
    """A docstring for --help, which breaks lines itself: paragraphs and list items on one line each."""
    return re.sub(r"(?<=\S)\n(?:   )?(?=\S)(?!\d\. )", " ", doc.rstrip())


def saved_options(cls: type, path: Path) -> dict[str, Any]:
    """The options that a run wrote to a JSON file, those that cls has. Raises SightRLError for a damaged file and for a
    value that is no possible one of its option."""
    try:
        saved = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        problem = f"no run is there ({path.name} is missing or damaged)"
        raise SightRLError(f"--resume {path.parent}: {problem}; give the folder of a run.") from None
    kinds = get_type_hints(cls)
    saved = {name: saved[name] for name in kinds if name in saved}
    for name, value in saved.items():
        if not fits(value, kinds[name]):
            problem = f"{path.name} has {name} = {str(value)[:60]!r}, which that option cannot be"
            raise SightRLError(f"--resume {path.parent}: {problem}; correct it, or give the folder of another run.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON can be an option of this type."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if parts:  # a union
        return any(fits(value, part) for part in parts)
    return type(value) is kind or (kind is float and type(value) is int)


def chosen_defaults(cls: type, argv: list[str], choices: dict[str, dict[str, dict]]) -> dict:
    """The defaults that the typed (or default) preset and variant set."""
    defaults: dict = {}
    for option, table in choices.items():
        value = typed(argv, option) or getattr(cls, option)
        defaults |= table.get(value, {}) | ({option: value} if value in table else {})
    return defaults


def typed(argv: list[str], option: str) -> str:
    """The value given to --option, "" if it was not typed; --some-name and --some_name are the same."""
    flag = option.replace("_", "-")
    for i, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name.startswith("--") and name[2:].replace("_", "-") == flag:
            return value or (argv[i + 1] if i + 1 < len(argv) else "")
    return ""


def option_help(cls: type) -> dict[str, str]:
    """Option name -> the string below its field, base classes included."""
    texts: dict[str, str] = {}
    for base in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts
