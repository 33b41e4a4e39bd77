"""Run: folder, metrics, checkpoints, resume bit for bit, signals and disks that say no."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import assert_same_end, metrics, untimed
from torch import nn
from toy_run import Args, Stream, Toy, ToyVLM, train

from common import checkpoint as checkpoints
from common.errors import SightRLError, main_guard
from common.progress import duration
from common.run import Run


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("common.report.write_report", lambda folder: folder / "report.html")


# ---------------------------------------------------------------- the folder and the metrics


def test_folder_describes_the_run(tmp_path):
    run = train(Args(out=str(tmp_path)))
    assert run.folder.name.startswith("toy-world-s0-2")
    config = json.loads((run.folder / "config.json").read_text())
    assert config["lr"] == 0.01 and config["steps"] == 8
    about = json.loads((run.folder / "run.json").read_text())
    assert about["method"] == "toy" and about["command"].startswith("python ") and "git_commit" in about
    versions = json.loads((run.folder / "versions.json").read_text())
    assert versions["torch"] and versions["python"]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["accuracy"] == 0.5 and summary["steps"] == 8
    assert [line["step"] for line in metrics(run.folder)] == list(range(8))
    line = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert {"seconds/update", "seconds/step", "tokens_per_second", "memory/peak_gb"} <= line.keys()
    assert (run.folder / "model" / "model.safetensors").exists()
    assert len(list((run.folder / "images").glob("*.png"))) == 8
    assert not list(run.folder.rglob(".tmp-*"))


def test_not_finite_metric_is_null_and_reported(tmp_path, capsys):
    run = Run(Args(out=str(tmp_path)), "toy", 3)
    run.log(0, {"loss": float("nan"), "kl": torch.tensor(2.0), "flag": np.bool_(True)})
    run.log(1, {"loss": float("inf"), "kl": np.float32(0.5), "flag": 0})
    assert [line["loss"] for line in metrics(run.folder)] == [None, None]
    assert metrics(run.folder)[0]["kl"] == 2.0 and metrics(run.folder)[0]["flag"] == 1
    assert capsys.readouterr().out.count("loss is not a finite number") == 1
    run.close()


def test_plain_progress_without_terminal(tmp_path, capsys):
    train(Args(out=str(tmp_path)))
    out = capsys.readouterr().out
    assert "step 1/8  reward" in out and "step 8/8" in out and "left" in out and "\x1b" not in out


def test_same_picture_is_stored_once(tmp_path):
    run = Run(Args(out=str(tmp_path)), "toy", 3)
    picture = np.zeros((4, 4, 3), np.uint8)
    dependency = torch.tensor([0.1, float("nan")])
    run.log_rollouts(0, [{"image": picture, "dependency": dependency}, {"images": [picture, picture]}])
    lines = untimed(run.folder / "rollouts.jsonl")
    assert len(list((run.folder / "images").iterdir())) == 1 and len(lines[1]["images"]) == 2
    assert lines[0]["dependency"] == [0.1, None]
    run.close()


def test_wandb_offline_without_account(tmp_path, monkeypatch):
    seen = {}

    class FakeRun:
        summary = {}  # noqa: RUF012

        def log(self, values: dict, step: int) -> None:
            seen[step] = values

        def finish(self) -> None:
            seen["finished"] = True

    fake = type(sys)("wandb")
    fake.Settings = lambda **kw: None
    fake.init = lambda **kw: seen.update(init=kw) or FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(Args(out=str(tmp_path / "out"), wandb=True))
    assert seen["init"]["mode"] == "offline" and seen["finished"] and seen[7]["loss"] > 0
    assert FakeRun.summary == {"accuracy": 0.5}


# ---------------------------------------------------------------- state as JSON and tensors

STATE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(STATE)
def test_packed_state_round_trips(state):
    tensors: dict = {}
    packed = json.loads(json.dumps(checkpoints.pack_state(state, tensors, "s")))
    assert checkpoints.unpack_state(packed, tensors) == state


def test_packed_state_refuses_objects():
    with pytest.raises(TypeError, match=r"s\.a: a object cannot be kept"):
        checkpoints.pack_state({"a": object()}, {}, "s")


def test_model_state_names_ties_and_frozen():
    model = Toy()
    state = checkpoints.model_state(model)
    assert set(state) <= set(model.state_dict())
    assert "embed.weight" in state and "head.weight" not in state  # tied: kept once
    assert "base.weight" not in state and "norm.running_mean" in state
    with pytest.raises(SightRLError, match="another model"):
        checkpoints.load_model_state(model, {"x": torch.zeros(1)}, Path("c"))


def test_optimizer_moments_keep_float32_beside_bfloat16_weights():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.state[weight]["exp_avg"] = torch.tensor([0.1, 0.2, 0.3])  # float32, as a master-weight optimiser keeps it
    state = checkpoints.unpack_state(checkpoints.pack_state(optimizer.state_dict(), tensors := {}, "o"), tensors)
    other = torch.optim.AdamW([weight])
    checkpoints.load_optimizer_state(other, state)
    assert torch.equal(other.state[weight]["exp_avg"], torch.tensor([0.1, 0.2, 0.3]))


# ---------------------------------------------------------------- checkpoints and resume


def test_resume_equals_uninterrupted_bit_for_bit(tmp_path):
    args = Args(out=str(tmp_path), run_name="whole")
    whole = train(args)
    cut = replace(args, run_name="cut")
    train(cut, stop_after=4)
    train(replace(cut, resume=str(tmp_path / "cut")), stop_after=6)
    train(replace(cut, resume=str(tmp_path / "cut")))
    assert_same_end(whole.folder, tmp_path / "cut")


def test_keeps_the_last_checkpoints(tmp_path):
    run = train(Args(out=str(tmp_path), steps=11))
    names = sorted(p.name for p in (run.folder / "checkpoints").iterdir())
    assert names == ["latest", "step-00000008", "step-00000010"]


def test_resume_before_the_first_checkpoint_starts_again(tmp_path, capsys):
    args = Args(out=str(tmp_path), run_name="early")
    train(args, stop_after=1)
    train(replace(args, resume=str(tmp_path / "early")))
    assert [line["step"] for line in metrics(tmp_path / "early")] == list(range(8))
    assert "starting again" in capsys.readouterr().out


def test_a_finished_run_goes_on_with_more_steps(tmp_path):
    args = Args(out=str(tmp_path), run_name="more")
    train(args)
    (tmp_path / "more" / "eval_after.json").write_text("{}")
    train(replace(args, resume=str(tmp_path / "more")))
    assert (tmp_path / "more" / "eval_after.json").exists()  # nothing was left to train
    train(replace(args, resume=str(tmp_path / "more"), steps=11))
    assert not (tmp_path / "more" / "eval_after.json").exists() and len(metrics(tmp_path / "more")) == 11
    whole = train(Args(out=str(tmp_path), run_name="eleven", steps=11))
    assert_same_end(whole.folder, tmp_path / "more")


def test_auto_continues_the_unfinished_run_with_the_same_options(tmp_path):
    args = Args(out=str(tmp_path), resume="auto")
    first = train(args, stop_after=4)
    other = train(replace(args, lr=0.02), stop_after=4)
    assert other.folder != first.folder
    assert train(args).folder == first.folder  # finished now
    assert train(args, stop_after=1).folder != first.folder


def test_resume_with_other_options_is_refused(tmp_path):
    args = Args(out=str(tmp_path), run_name="a")
    train(args, stop_after=4)
    with pytest.raises(SightRLError, match=r"lr was 0.01, now 0.5.*continue with: python .*--resume"):
        train(replace(args, resume=str(tmp_path / "a"), lr=0.5))
    with pytest.raises(SightRLError, match="no run folder there"):
        train(replace(args, resume=str(tmp_path / "missing")))


def test_folder_in_use_or_taken(tmp_path):
    args = Args(out=str(tmp_path), run_name="a")
    run = Run(args, "toy", 3)
    with pytest.raises(SightRLError, match="in use by another process"):
        Run(replace(args, resume=str(tmp_path / "a")), "toy", 3)
    run.close()
    with pytest.raises(SightRLError, match="exists already"):
        Run(args, "toy", 3)


def test_unknown_stateful_object_is_refused(tmp_path):
    args = Args(out=str(tmp_path), run_name="a")
    train(args, stop_after=4)
    run = Run(replace(args, resume=str(tmp_path / "a")), "toy", 8)
    vlm = ToyVLM()
    with pytest.raises(SightRLError, match="keeps the state of"):
        run.resume(vlm, torch.optim.AdamW(vlm.trainable()))
    run.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_finishes_the_step_and_saves(tmp_path, capsys, number):
    args = Args(out=str(tmp_path), run_name="s")
    before = signal.getsignal(number)
    run = Run(args, "toy", 8)
    vlm, stream = ToyVLM(), Stream(0)
    optimizer = torch.optim.AdamW(vlm.trainable())
    run.resume(vlm, optimizer, stream=stream)
    os.kill(os.getpid(), number)
    assert not run.stop_requested  # the step is still running
    run.log(0, {"loss": 1.0})
    assert run.checkpoint_due(0) and run.stop_requested
    run.checkpoint(0, vlm, optimizer, stream=stream)
    assert "Stopped after step 1 of 8; continue with: python " in capsys.readouterr().out
    run.finish({})
    assert not (run.folder / "summary.json").exists()
    assert signal.getsignal(number) is before
    assert checkpoints.latest_checkpoint(run.folder / "checkpoints").name == "step-00000000"


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_run(tmp_path, capfd, request):
    """The loop does not look again after it; the evaluation that follows may take hours."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, old))
    run = Run(Args(out=str(tmp_path), run_name="s"), "toy", 1)
    vlm, stream = ToyVLM(), Stream(0)
    run.resume(vlm, None, stream=stream)
    run.log(0, {"loss": 1.0})
    assert run.checkpoint_due(0)
    os.kill(os.getpid(), signal.SIGINT)
    run.checkpoint(0, vlm, None, stream=stream)
    assert not run.stop_requested
    with pytest.raises(KeyboardInterrupt):
        run.training_ended()
    assert "Stopped; continue with: python" in capfd.readouterr().err
    run.close()


# ---------------------------------------------------------------- disks that say no


def test_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    args = Args(out=str(tmp_path), run_name="full")
    real = checkpoints.save_tensors

    def full(tensors: dict, path: Path) -> None:
        if "step-00000005" in str(path) and path.name == "optimizer.safetensors":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_tensors", full)
    with pytest.raises(
        SightRLError,
        match=r"the disk is full \(\d+\.\d MB free, about 1\.\d MB needed\); free some space\. Then continue with: ",
    ):
        train(args)
    folder = tmp_path / "full" / "checkpoints"
    assert checkpoints.latest_checkpoint(folder).name == "step-00000002"
    assert not list(folder.glob(".tmp-*")) and len(metrics(tmp_path / "full")) == 6
    monkeypatch.setattr(checkpoints, "save_tensors", real)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (tmp_path / "full" / ".lock").unlink()  # the failed run's process would be gone
    train(replace(args, resume=str(tmp_path / "full")))
    assert len(metrics(tmp_path / "full")) == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_logging(tmp_path):
    run = Run(Args(out=str(tmp_path)), "toy", 3)
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SightRLError, match=r"metrics\.jsonl: the disk is full"):
        run.log(0, {"loss": 1.0})


def test_unwritable_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SightRLError, match=r"cannot write .*a part of this path is a file"):
        Run(Args(out=str(tmp_path / "file")), "toy", 3)

    def denied(self: Path, *rest: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(SightRLError, match="writing there is not allowed; give a writable folder with --out"):
        Run(Args(out=str(tmp_path / "new")), "toy", 3)


def test_damaged_checkpoint_names_a_way_out(tmp_path):
    args = Args(out=str(tmp_path), run_name="d")
    train(args, stop_after=6)
    (tmp_path / "d" / "checkpoints" / "step-00000005" / "model.safetensors").write_bytes(b"xx")
    with pytest.raises(SightRLError, match=r"cannot be read.*name an older step"):
        train(replace(args, resume=str(tmp_path / "d")))


def test_main_guard(capsys):
    def fail(error: BaseException) -> None:
        raise error

    for error, code in ((SightRLError("row 3: no image"), 2), (KeyboardInterrupt(), 130)):
        with pytest.raises(SystemExit) as end:
            main_guard(fail, error)
        assert end.value.code == code
    assert capsys.readouterr().err == "error: row 3: no image\n"


def test_duration():
    assert [duration(s) for s in (0, 59.7, 3599, 90000)] == ["0s", "1m00s", "59m59s", "25h00m"]
