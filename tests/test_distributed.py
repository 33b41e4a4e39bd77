"""Several gloo processes on the CPU: the same run as one process, checkpoints for any number, and every way to end.

What must come out is computed by the process of pytest alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import coin, free_port
from method_runs import assert_same_tensors, metrics
from safetensors.torch import load_file

from common import distributed
from common.logprob import micro_batches
from common.sharding import own_slice
from methods import grpo, sft, vppo

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"grpo": grpo, "vppo": vppo, "sft": sft}
LIMIT = 240  # seconds until a launch counts as hanging
# Where a gradient is nothing but rounding, AdamW still steps by up to lr: hence a small one.
SMALL = dict(model="random:qwen2_5_vl", steps=3, eval_questions=0, max_new_tokens=6, lr=2e-5, checkpoint_every=0)
SMALL_RL = dict(prompts_per_step=5, group_size=3, filter_groups="off", micro_tokens=300)
EQUAL = {  # runs that must not depend on the number of processes
    "grpo-kl": ("grpo", dict(kl_coef=0.1, loss_mean="token_mean_micro", recompute_old_logps=True, eval_questions=1,
                             eval_k=3)),
    "grpo-minis": ("grpo", dict(mini_batch_prompts=3, micro_tokens=100, train_vision=False,
                                gradient_checkpointing=True)),
    "grpo-one-prompt": ("grpo", dict(prompts_per_step=1, entropy_coef=0.1)),  # the second process has none
    "grpo-split": ("grpo", dict(micro_tokens=10_000, loss_mean="sequence_mean")),  # one micro-batch becomes two
    "vppo": ("vppo", dict(filter_groups="std", max_rounds=3, gen_prompts=3, entropy_coef=0.06, eval_every=2)),
    "vppo-lora": ("vppo", dict(lora_rank=2, kl_coef=0.1, eval_questions=1, eval_k=1)),
    "sft": ("sft", dict(batch_size=5, micro_tokens=100)),
}  # fmt: skip


def options(name: str, out: Path, run_name: str, **more) -> dict:
    return SMALL | (SMALL_RL if name != "sft" else {}) | {"out": str(out), "run_name": run_name} | more


def launch(processes: int, *words: str, node: tuple[str, ...] = ("--standalone",), **environment: str):
    """torchrun of this many processes in a session of its own: a Popen with pipes."""
    command = [sys.executable, "-m", "torch.distributed.run", *node, "--nproc_per_node", str(processes)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.Popen([*command, *words], cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def start_jobs(processes: int, jobs: list, **more) -> subprocess.Popen:
    return launch(processes, "tests/distributed_worker.py", json.dumps(jobs), **more)


def start_two_nodes(processes: int, jobs: list) -> list[subprocess.Popen]:
    """Two torchruns, as on two machines, with this many processes each."""
    where = ("--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", str(free_port()))
    return [start_jobs(processes, jobs, node=(*where, "--node_rank", str(rank))) for rank in range(2)]


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    """(status, what was printed, errors); a launch that hangs is ended and fails the test."""
    try:
        out, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, errors


def run_here(name: str, out: Path, run_name: str, **more) -> Path:
    """The same run in this process alone."""
    METHODS[name].main(METHODS[name].Args(**options(name, out, run_name, **more)))
    return out / run_name


def assert_same_run(a: Path, b: Path) -> None:
    rows, expected = metrics(a), metrics(b)
    assert len(rows) == len(expected) == SMALL["steps"]
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert value == pytest.approx(other[name], rel=1e-5, abs=1e-5), (row["step"], name)
    assert_same_tensors(a / "model", b / "model", tolerance=1e-5)


@pytest.fixture(scope="module", autouse=True)
def coin_grades():
    """As in distributed_worker.py; the runs that several tests look at take as long as this module."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.rewards.accuracy", coin)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(out) -> Path:
    """Folder of the runs in EQUAL by two processes, a run cut after two steps, and one in bfloat16."""
    jobs = [[name, options(name, out / "two", key, **more)] for key, (name, more) in EQUAL.items()]
    jobs += [["grpo", options("grpo", out / "two", "cut", steps=2)]]
    jobs += [["grpo", options("grpo", out / "two", "bf16", dtype="bfloat16", lora_rank=2)]]
    jobs += [["sft", options("sft", out / "two", "half", dtype="bfloat16", batch_size=3)]]
    status, _, errors = end(start_jobs(2, jobs))
    assert status == 0, errors
    return out / "two"


# ---------------------------------------------------------------- the same run


@pytest.mark.parametrize("key", EQUAL)
def test_two_processes_equal_one(key, two, out):
    name, more = EQUAL[key]
    assert_same_run(two / key, run_here(name, out / "one", key, **more))
    assert (two / key / "agreed").exists()  # all processes hold the same weights, to the bit
    assert json.loads((two / key / "versions.json").read_text())["processes"] == 2
    if more.get("eval_questions"):
        for file in ("eval_before.json", "eval_after.json"):
            ours, theirs = (json.loads((o / key / file).read_text()) for o in (two, out / "one"))
            assert [r["responses"] for r in ours["records"]] == [r["responses"] for r in theirs["records"]]


def test_bfloat16_keeps_float32_masters(two):
    saved = load_file(two / "half/model/model.safetensors")
    masters = load_file(two / "half/checkpoints/step-00000002/model.safetensors")
    assert (two / "half/agreed").exists() and (two / "bf16/agreed").exists()
    assert {v.dtype for v in saved.values()} == {torch.bfloat16}
    assert {v.dtype for v in masters.values()} == {torch.float32}
    assert any((v != v.bfloat16()).any() for v in masters.values())  # what a step adds is not rounded away
    moments = load_file(two / "half/checkpoints/step-00000002/optimizer.safetensors")
    assert {v.dtype for v in moments.values()} == {torch.float32}


def test_a_checkpoint_of_two_goes_on_with_one_and_with_four(two, out):
    """A checkpoint does not tell how many processes wrote it."""
    whole = run_here("grpo", out / "one", "whole")
    for file in ("model", "optimizer"):
        ours = load_file(two / f"cut/checkpoints/step-00000001/{file}.safetensors")
        assert ours and not any(name.startswith("_") for name in ours)
    for name in ("on-one", "on-four"):
        copy_run(two / "cut", out / name)
    nodes = start_two_nodes(2, [["grpo", options("grpo", out, "on-four", resume=str(out / "on-four"))]])
    run_here("grpo", out, "on-one", resume=str(out / "on-one"))
    for status, _, errors in map(end, nodes):
        assert status == 0, errors
    assert_same_run(out / "on-one", whole)
    assert_same_run(out / "on-four", whole)
    assert (out / "on-four/agreed").exists()


def copy_run(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    (target / "agreed").unlink()
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"steps": SMALL["steps"]}))


# ---------------------------------------------------------------- every way to end


@pytest.mark.slow
def test_a_process_that_dies_on_another_node_ends_the_run(tmp_path):
    job = options("grpo", tmp_path, "dies", steps=50, die={"rank": 3, "step": 1, "how": "kill"})
    for status, _, errors in map(end, start_two_nodes(2, [["grpo", job]])):
        assert status != 0
        assert errors.count("another process of this run ended") == 1, errors


@pytest.mark.parametrize(("how", "rank"), [("kill", 0), ("raise", 1)])
def test_a_process_that_dies_ends_the_run_with_a_sentence(how, rank, tmp_path):
    job = options("grpo", tmp_path, "dies", steps=50, checkpoint_every=1, die={"rank": rank, "step": 2, "how": how})
    status, _, errors = end(start_jobs(2, [["grpo", job]]))
    assert status != 0
    assert errors.count("another process of this run ended") == 1, errors
    assert f"--resume {tmp_path}/dies" in errors and "torchrun --nproc_per_node 2" in errors
    assert errors.count("ArithmeticError: the cat sat on the keyboard") == (how == "raise"), errors
    assert (tmp_path / "dies/checkpoints/latest").read_text() == "step-00000001\n"


@pytest.mark.parametrize("whom", ["torchrun", "one process"])
def test_a_signal_stops_all_after_the_step_and_the_run_goes_on_elsewhere(whom, tmp_path):
    job = options("grpo", tmp_path, "stopped", die={"rank": 1, "step": 1, "how": "wait"})
    process = start_jobs(2, [["grpo", job]], WAIT_IN=str(tmp_path))
    waiting = tmp_path / "waiting"
    wait_for(lambda: waiting.exists() and waiting.read_text().endswith("\n"), process)  # in the second step's update
    os.kill(process.pid if whom == "torchrun" else int(waiting.read_text()), signal.SIGTERM)
    status, printed, errors = end(process)
    assert (status == 0) == (whom == "one process"), errors
    assert "Stopped after step 2 of 3" in printed and "to stop them after a step: kill" in printed, printed + errors
    assert (tmp_path / "stopped/checkpoints/latest").read_text() == "step-00000001\n"
    run_here("grpo", tmp_path, "stopped", resume=str(tmp_path / "stopped"))
    assert_same_run(tmp_path / "stopped", run_here("grpo", tmp_path, "whole"))


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.parametrize("words", [("--run-name", "taken"), ("--group-size", "1")])
def test_a_mistake_is_one_sentence_once(words, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    words = ("--model", "random:qwen2_5_vl", "--out", str(tmp_path), *words)
    status, _, errors = end(launch(2, "methods/grpo.py", *words))
    sentence = "exists already; choose another --run-name" if "taken" in words else "--group-size must be at least 2"
    assert status != 0 and errors.count("error: ") == errors.count(sentence) == 1, errors


# ---------------------------------------------------------------- small parts


def pretend(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(distributed, "_rank", rank)
    monkeypatch.setattr(distributed, "_world_size", world_size)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_every_piece_of_work_is_done_once(world, monkeypatch):
    lengths = [7, 3, 9, 3]
    done, parts, rows, whole = [], [], [], torch.arange(7)
    for rank in range(world):
        pretend(monkeypatch, rank, world)
        batches = micro_batches(lengths, 100)
        assert len(batches) == min(world, len(lengths))
        done += distributed.share(batches)
        parts += list(range(10))[distributed.own_part(10)]
        rows.append(own_slice(whole))
    assert sorted(i for batch in done for i in batch) == [0, 1, 2, 3]
    assert parts == list(range(10))
    assert [r.tolist() for r in rows if len(r)] == [c.tolist() for c in whole.chunk(world)]


def test_without_torchrun_nothing_happens(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    distributed.start("auto")
    distributed.finish()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.local_device("cuda:3") == "cuda:3" and distributed.launcher() == ["python"]


def test_no_connection_is_closed_before_all_have_left_the_last_collective(monkeypatch):
    """And a store that is gone by then, with its machine, is no error; one before that is."""
    events = []

    class Store:
        def add(self, key: str, n: int) -> int:
            events.append(n)
            return min(len(events), 2)  # the other one comes after this one has looked once

    monkeypatch.setattr(distributed, "_world_size", 2)
    monkeypatch.setattr(distributed, "_ending", threading.Event())
    monkeypatch.setattr(distributed, "agree", lambda flag: events.append("agreed"))
    monkeypatch.setattr(distributed, "key_value_store", Store)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: events.append("closed"))
    distributed.finish()
    assert events[:2] == ["agreed", 1] and events[-1] == "closed" and distributed._ending.is_set()

    def gone():
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(distributed, "key_value_store", gone)
    distributed.finish()
    monkeypatch.setattr(distributed, "agree", lambda flag: gone())
    with pytest.raises(RuntimeError):
        distributed.finish()
