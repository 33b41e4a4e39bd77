"""Disks that fill up or cannot be written, for real: one sentence, the old checkpoint stays, resuming loses nothing."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import toy_run
from child_runs import Child, Disk, no_more_files_above, start_toy
from method_runs import assert_same_end

from common import checkpoint as checkpoints
from common.errors import SightRLError
from common.run import Run

ARGS = toy_run.Args(run_name="r", steps=6, checkpoint_every=2)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk", "4m")
    yield disk
    disk.remove()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    child = start_toy(replace(ARGS, out=str(out)), out / "log")
    assert child.wait() == 0, child.said()
    return child.folder


@pytest.mark.parametrize("kilobytes", range(0, 80, 8))
def test_a_disk_that_is_full_sooner_or_later(kilobytes, disk, whole, tmp_path):
    args = replace(ARGS, out=str(disk.folder))
    disk.leave(kilobytes << 10)
    child = start_toy(args, tmp_path / "log")
    if status := child.wait():
        assert status == 2
        sentence = child.error()
        assert re.search(r"cannot write \S+: the disk is full \(\d\.\d MB free, about \d+\.\d MB needed\); free some "
                         r"space\.", sentence) and str(child.folder) in sentence  # fmt: skip
        trains = (child.folder / "metrics.jsonl").exists()
        assert not trains or f"continue with: python toy.py --resume {child.folder}" in sentence
        newest = checkpoints.latest_checkpoint(child.folder / "checkpoints")
        assert newest is None or checkpoints.load_checkpoint(newest, None, None)["step"] >= 0
    disk.empty()
    started = (child.folder / "config.json").exists()
    again = start_toy(replace(args, resume=str(child.folder) if started else ""), tmp_path / "again")
    assert again.wait() == 0, again.said()
    assert_same_end(whole, child.folder)


def test_a_disk_that_is_full_when_the_model_is_saved(disk, tmp_path):
    """Weights, tokenizer and image processor are written by three libraries, each with errors of its own."""

    def work() -> None:
        from common.vlm import load_vlm

        run = Run(replace(ARGS, out=str(disk.folder)), "toy", 1)
        run._vlm = load_vlm("random:qwen2_5_vl")
        for kilobytes in (0, 40, *range(628, 680, 4), 1000):
            disk.leave(kilobytes << 10)
            try:
                run._save_model()
                print("saved", flush=True)
            except SightRLError as error:
                print(f"error: {error}", flush=True)
            disk.empty()
            for left in disk.folder.glob("r/*model"):
                shutil.rmtree(left)

    child = Child(work, tmp_path / "log")
    assert child.wait() == 0, child.said()
    said = [line for line in child.said().splitlines() if line.startswith(("saved", "error"))]
    full = [line for line in said if "r/model: the disk is full (" in line and "about 1.7 MB needed" in line]
    assert len(said) == 16 and set(said) - set(full) == {"saved"} and len(full) > 4 and said[-1] == "saved", said


def test_a_limit_of_the_size_of_files_is_one_sentence(whole, tmp_path):
    args = replace(ARGS, out=str(tmp_path))
    child = start_toy(args, tmp_path / "log", partial(no_more_files_above, None, 3000))
    assert child.wait() == 2 and "limit (ulimit -f) allows" in child.error()
    again = start_toy(replace(args, resume=str(child.folder)), tmp_path / "again")
    assert again.wait() == 0, again.said()
    assert_same_end(whole, child.folder)


def test_what_a_full_disk_refused_is_not_said_again_at_the_end(tmp_path):
    run = Run(replace(ARGS, out=str(tmp_path)), "toy", 3)
    (run.folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(SightRLError, match="the disk is full"):
        run.log(0, {"loss": 1.0})
    run.close()  # flushes once more


def test_a_read_only_place_is_said_before_anything_slow(disk, tmp_path):
    args = replace(ARGS, out=str(disk.folder))
    disk.read_only(True)
    child = start_toy(args, tmp_path / "new")
    assert child.wait() == 2 and "the file system is read-only; give a writable folder with --out" in child.error()
    disk.read_only(False)
    assert start_toy(args, tmp_path / "log").wait() == 0
    disk.read_only(True)
    child = start_toy(replace(args, resume=str(disk.folder / "r"), steps=8), tmp_path / "resumed")
    assert child.wait() == 2 and "the file system is read-only" in child.error()


def test_checkpoints_that_cannot_be_written_are_noticed_at_the_start(disk, tmp_path):
    """The run folder is in order, only the place of its checkpoints is read-only: hours of training would be lost."""
    folder = tmp_path / "r/checkpoints"
    args = replace(ARGS, out=str(tmp_path))
    assert start_toy(args, tmp_path / "log").wait() == 0
    disk.read_only(True)
    disk.mount("--bind", str(disk.folder), str(folder))
    try:
        lines = (tmp_path / "r/metrics.jsonl").read_text()
        child = start_toy(replace(args, resume=str(tmp_path / "r"), steps=8), tmp_path / "resumed")
        assert child.wait() == 2
        assert f"cannot write {folder}: the file system is read-only" in child.error()
        assert (tmp_path / "r/metrics.jsonl").read_text() == lines
    finally:
        Disk.unmount(folder)


# ---------------------------------------------------------------- killed in the first instants


@pytest.mark.parametrize("files", [[".lock"], [".lock", ".tmp-run.json"], [".lock", "run.json", "versions.json"]])
def test_a_run_killed_before_it_had_described_itself_starts_again_under_its_name(files, whole, tmp_path):
    folder = tmp_path / "r"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{")
    child = start_toy(replace(ARGS, out=str(tmp_path)), tmp_path / "log")
    assert child.wait() == 0, child.said()
    assert_same_end(whole, folder)


def test_config_is_the_last_that_is_written_of_a_new_run(tmp_path, monkeypatch):
    """What has a config.json can be resumed."""
    written, plain = [], checkpoints.write_json
    monkeypatch.setattr(checkpoints, "write_json", lambda path, value: written.append(path.name) or plain(path, value))
    Run(replace(ARGS, out=str(tmp_path)), "toy", 3).close()
    assert written == ["run.json", "versions.json", "config.json"]


def test_a_folder_with_files_of_others_is_left_alone(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r/thesis.tex").write_text("all of it")
    with pytest.raises(SightRLError, match="exists already"):
        Run(replace(ARGS, out=str(tmp_path)), "toy", 3)
