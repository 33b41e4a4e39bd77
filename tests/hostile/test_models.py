"""Hostile models and checkpoints: safetensors alone are read, no code comes with a model, damage is one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import run as eval_run
from common.args import CommonArgs, parse_args
from common.checkpoint import latest_checkpoint
from common.errors import SightRLError
from common.loading import TINY
from common.run import Run
from common.vlm import load_vlm

PICKLES = ("pytorch_model.bin", "model.pt", "optimizer.pt", "tokenizer.pkl", "training_args.bin", "scheduler.pt")


def pickled(canary: Path) -> bytes:
    """A pickle, as torch.save writes it, that makes the canary file when it is loaded without care."""
    code = f"cbuiltins\nopen\n(V{canary}\nVw\ntR.".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("data.pkl", code), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny VLM, to be spoilt."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def refusal(folder: Path | str) -> str:
    with pytest.raises(SightRLError) as caught:
        load_vlm(str(folder), device="cpu")
    text = str(caught.value)
    assert "\n" not in text and str(folder) in text and len(text) < 600, text
    return text


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---------------------------------------------------------------- pickles and code


@pytest.mark.parametrize("name", PICKLES)
def test_a_model_of_pickles_is_refused(name: str, model: Path, canary: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickled(canary))
    assert f"holds its weights as a pickle ({name})" in refusal(model)
    assert not canary.exists()


def test_pickles_beside_safetensors_are_never_read(model: Path, canary: Path) -> None:
    for name in PICKLES:
        (model / name).write_bytes(pickled(canary))
    load_vlm(str(model), device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../elsewhere.safetensors", "/tmp/x.safetensors", 7])
def test_an_index_names_safetensors_beside_it(shard: Any, model: Path, canary: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickled(canary))
    shutil.move(model / "model.safetensors", model.parent / "elsewhere.safetensors")
    names = list(load_file(model.parent / "elsewhere.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no safetensors file beside it" in refusal(model)
    (model / "model.safetensors.index.json").write_text('{"weight_map": [')
    assert "is damaged" in refusal(model)
    assert not canary.exists()


CODE = """
from pathlib import Path
Path({canary!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig): model_type = "mine"
class Model(PreTrainedModel): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""
AUTO = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoModelForImageTextToText": "code.Model",
        "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"], "AutoImageProcessor": "code.Config",
        "AutoProcessor": "code.Config"}  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mine"])
def test_code_of_a_model_does_not_run(kind: str, model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a known architecture it is ignored, else refused; nobody is asked, nothing runs."""
    (model / "code.py").write_text(CODE.format(canary=str(canary)))
    edit(model / "config.json", auto_map=AUTO, model_type=kind)
    edit(
        model / "tokenizer_config.json",
        auto_map=AUTO,
        tokenizer_class="Tokenizer" if kind == "mine" else "Qwen2Tokenizer",
    )
    edit(model / "preprocessor_config.json", auto_map=AUTO)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("the user is asked whether code may run"))
    with contextlib.suppress(SightRLError):
        load_vlm(str(model), device="cpu")
        assert kind != "mine"
    assert not canary.exists()


def test_adapters(tmp_path: Path, canary: Path) -> None:
    """An adapter names a base model; one that names itself, is pickled, or asks for modules of its own is refused."""
    folder = tmp_path / "adapter"
    load_vlm("tiny", device="cpu", lora_rank=2).save(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path="tiny")
    assert load_vlm(str(folder), device="cpu").has_adapter
    kept = (folder / "adapter_config.json").read_text()
    for change in ({"base_model_name_or_path": str(folder)}, {"base_model_name_or_path": None}, {"peft_type": "NONE"},
                   {"megatron_config": {"a": 1}, "megatron_core": "code"}, {"r": "many"}, {"r": -1}):  # fmt: skip
        edit(folder / "adapter_config.json", **change)
        assert refusal(folder), change
        (folder / "adapter_config.json").write_text(kept)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[:3]), folder / "adapter_model.safetensors")
    refusal(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickled(canary))
    assert "pickle (adapter_model.bin)" in refusal(folder)
    assert not canary.exists()


# ---------------------------------------------------------------- weights


def header(claim: int, data: bytes = b"") -> bytes:
    return struct.pack("<Q", claim) + data


def whole(shape: list[int], end: int) -> bytes:
    text = json.dumps({"lm_head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return header(len(text), text + b"\0" * 16)


def spoilt(change: Callable[[dict], Any]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return spoil


def first(tensors: dict) -> str:
    return next(name for name in sorted(tensors) if "norm" in name)


WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
    "cut in the header": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "a header of 10 GB": lambda file: file.write_bytes(header(10 << 30, b"{}")),
    "a header of 2^64": lambda file: file.write_bytes(header(2**64 - 1)),
    "tensors of 10 GB": lambda file: file.write_bytes(whole([50_000, 50_000], 10_000_000_000)),
    "offsets beyond the end": lambda file: file.write_bytes(whole([2, 2], 999_999)),
    "a deep header": lambda file: file.write_bytes(header(20_000, b"[" * 20_000)),
    "no JSON": lambda file: file.write_bytes(header(4, b"\xff\xfe{{")),
    "another shape": spoilt(lambda t: t.update({first(t): torch.zeros(3)})),
    "one missing": spoilt(lambda t: t.pop(first(t))),
    "all missing": spoilt(lambda t: [t.pop(name) for name in list(t)[1:]]),
    "whole numbers": spoilt(lambda t: t.update({first(t): t[first(t)].to(torch.int8)})),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_refused(name: str, model: Path) -> None:
    WEIGHTS[name](model / "model.safetensors")
    assert "is not a complete model folder" in refusal(model)


def test_tensors_too_many_are_left_out(model: Path) -> None:
    spoilt(lambda t: t.update({"evil.weight": torch.zeros(9), "__class__": torch.zeros(1)}))(
        model / "model.safetensors"
    )
    assert not any("evil" in name for name in load_vlm(str(model), device="cpu").model.state_dict())


CONFIGS: list[tuple[str, Any]] = [
    ("config.json", "{"), ("config.json", "[]"), ("config.json", "[" * 100_000), ("config.json", {"model_type": ["a"]}),
    ("config.json", {"vision_config": "big"}), ("config.json", {"text_config": {"hidden_size": -1}}),
    ("config.json", {"text_config": {"hidden_size": "many", "model_type": "qwen2_5_vl_text"}}),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", "\0"),
    ("preprocessor_config.json", "{"), ("preprocessor_config.json", {"size": {"a": 1}}),
    ("preprocessor_config.json", {"image_mean": "x"}),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content"), CONFIGS)
def test_damaged_settings_are_refused(file: str, content: Any, model: Path) -> None:
    edit(model / file, **content) if isinstance(content, dict) else (model / file).write_text(content)
    with pytest.raises(SightRLError) as caught:
        load_vlm(str(model), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_template_that_fails(model: Path) -> None:
    template = "{{ raise_exception('no') }}{{ ().__class__.__base__.__subclasses__() }}"
    with contextlib.suppress(OSError):
        (model / "chat_template.jinja").unlink()
    edit(model / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SightRLError, match="chat template fails"):
        load_vlm(str(model), device="cpu").prompt("?", [])


# ---------------------------------------------------------------- checkpoints


@dataclass
class Args(CommonArgs):
    pass


class Toy:
    """What Run needs of a VLM."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 2)

    def save(self, folder: Path) -> None:
        folder.mkdir()


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"] + 0


def train(args: Args, steps: int) -> int:
    """Train up to so many steps and stop; the first step."""
    run, toy, counter = Run(args, "toy", 6), Toy(), Counter()
    optimizer = torch.optim.AdamW(toy.model.parameters())
    try:
        first_step = run.resume(toy, optimizer, counter=counter)
        for step in range(first_step, steps):
            toy.model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            counter.value += 1
            run.log(step, {"loss": 1.0})
            run.checkpoint(step, toy, optimizer, counter=counter)
        return first_step
    finally:
        run.close()


@pytest.fixture
def stopped(tmp_path: Path) -> Args:
    """Options that resume a run of two steps."""
    args = Args(out=str(tmp_path), run_name="r", checkpoint_every=1)
    train(args, 2)
    return replace(args, resume=str(tmp_path / "r"))


def checkpoint(args: Args) -> Path:
    return Path(args.resume) / "checkpoints" / "step-00000001"


def setting(name: str, value: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        state = json.loads((folder / "state.json").read_text())
        pairs = state["state"]["dict"]
        assert name in [key for key, _ in pairs]
        state["state"]["dict"] = [[key, value if key == name else old] for key, old in pairs]
        (folder / "state.json").write_text(json.dumps(state))

    return spoil


def text(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "state.json").write_text(content)


def tensors(file: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    return lambda folder: spoilt(change)(folder / f"{file}.safetensors")


STATES: dict[str, Callable[[Path], Any]] = {
    "no JSON": text("{"), "a list": text("[]"), "nothing": text("{}"), "null": text("null"),
    "deep": text("[" * 100_000),
    "another form": text('{"state": {"what": 1}, "optimizer": null}'),
    "a tensor that is none": text('{"state": {"tensor": "x"}}'),
    "an array of objects": text('{"state": {"array": [{}], "dtype": "O"}, "optimizer": null}'),
    "an array of 10 TB": text('{"state": {"array": [1], "dtype": "V10000000000000"}, "optimizer": null}'),
    "step a text": setting("step", "1"), "step negative": setting("step", -5), "step huge": setting("step", 10**30),
    "step true": setting("step", True), "step NaN": setting("step", float("nan")),
    "elapsed NaN": setting("elapsed", float("nan")),
    "elapsed a text": setting("elapsed", "long"),
    "positions negative": setting("positions", {"dict": [["metrics.jsonl", -1]]}),
    "positions a text": setting("positions", "here"), "no positions": setting("positions", None),
    "other objects": setting("stateful", {"dict": [["stream", 1]]}), "no objects": setting("stateful", 3),
    "an object of the wrong form": setting("stateful", {"dict": [["counter", {"dict": [["value", "x"]]}]]}),
    "random numbers of nothing": setting("random", {"dict": []}), "rng a text": setting("rng", "x"),
    "generator null": setting("generator", None),
    "model cut": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 20),
    "model a header of 10 GB": lambda folder: (folder / "model.safetensors").write_bytes(header(10 << 30)),
    "model in another shape": tensors("model", lambda t: t.update(weight=torch.zeros(2, 2))),
    "model of whole numbers": tensors("model", lambda t: t.update(weight=torch.zeros(2, 3, dtype=torch.int64))),
    "model with more": tensors("model", lambda t: t.update(more=torch.zeros(1))),
    "model with less": tensors("model", lambda t: t.pop("bias")),
    "optimizer with less": tensors("optimizer", lambda t: [t.pop(name) for name in list(t)[1:]]),
    "optimizer in another shape": tensors("optimizer",
                                          lambda t: t.update({n: torch.zeros(7, 7) for n in t if "exp_avg" in n})),
    "no optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_checkpoint_is_refused(name: str, stopped: Args) -> None:
    STATES[name](checkpoint(stopped))
    with pytest.raises(SightRLError) as caught:
        train(stopped, 6)
    said = str(caught.value)
    assert "\n" not in said and "step-00000001" in said and said.endswith("."), said


def test_pickles_in_a_run_are_never_read(stopped: Args, canary: Path) -> None:
    for name in PICKLES:
        (checkpoint(stopped) / name).write_bytes(pickled(canary))
        (Path(stopped.resume) / name).write_bytes(pickled(canary))
    assert train(stopped, 3) == 2
    for name in ("model", "optimizer", "state"):
        (checkpoint(stopped).with_name("step-00000002") / f"{name}.safetensors").write_bytes(pickled(canary))
    with pytest.raises(SightRLError, match="cannot be read"):
        train(stopped, 6)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/etc", "step-1", "", "step-00000001/../step-00000001", "\0", "a" * 9999]
)
def test_latest_names_a_checkpoint_beside_it(name: str, stopped: Args) -> None:
    folder = checkpoint(stopped).parent
    shutil.copytree(checkpoint(stopped), folder.parent.parent / "elsewhere")
    (folder / "latest").write_text(name)
    with pytest.raises(SightRLError, match="which is no checkpoint beside it"):
        latest_checkpoint(folder)


def test_shorter_files_are_not_filled_up(stopped: Args) -> None:
    (Path(stopped.resume) / "metrics.jsonl").write_text("")
    train(stopped, 3)
    assert "\0" not in (Path(stopped.resume) / "metrics.jsonl").read_text()


OPTIONS: dict[str, Any] = {"steps": "many", "seed": 1.5, "eval_k": None, "lora_alpha": [1], "train_vision": "yes",
                           "dtype": "int8", "max_minutes": {"a": 1}, "bad_rows": "all", "data": 7}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_another_kind_are_refused(name: str, stopped: Args, capsys: pytest.CaptureFixture) -> None:
    edit(Path(stopped.resume) / "config.json", **{name: OPTIONS[name]})
    with pytest.raises(SystemExit, match="2"):
        parse_args(CommonArgs, "", ["--resume", stopped.resume])
    said = capsys.readouterr().err
    assert f"config.json has {name} = " in said and len(said.splitlines()) == 1
    (Path(stopped.resume) / "options.json").write_text(json.dumps({"limit": "x", "k": OPTIONS[name]}))
    with pytest.raises(SightRLError, match=r"options.json has (limit|k) = "):
        eval_run.parse(["--resume", stopped.resume])


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000, "\udcff"])
def test_files_of_a_run_that_are_none(content: str, stopped: Args, capsys: pytest.CaptureFixture) -> None:
    """--resume FOLDER says so; --resume auto passes such a folder over."""
    for name in ("config.json", "run.json"):
        kept = (Path(stopped.resume) / name).read_bytes()
        (Path(stopped.resume) / name).write_text(content, errors="surrogateescape")
        with pytest.raises(SightRLError, match=f"{name} is missing or damaged"):
            train(stopped, 6)
        other = replace(stopped, resume="auto", run_name="")
        assert train(other, 1) == 0
        for folder in set(Path(stopped.out).iterdir()) - {Path(stopped.resume)}:
            shutil.rmtree(folder)
        (Path(stopped.resume) / name).write_bytes(kept)
    (Path(stopped.resume) / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(SystemExit, match="2"):
        parse_args(CommonArgs, "", ["--resume", stopped.resume])
    assert "config.json is missing or damaged" in capsys.readouterr().err
