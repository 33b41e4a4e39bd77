"""bench_step.py and profile_step.py end to end on minute settings, and their errors."""

from __future__ import annotations

import json

import pytest

import bench_step
import profile_step
import steps
from common import plan
from common.errors import SightRLError
from steps import Setting

MINUTE = Setting(2, 2, 3, 56, train_vision=True, model="2m")
SHAPE = {"family": "qwen2_5_vl", "tie_word_embeddings": False, "text": steps.MODELS["2m"][0],
         "vision": steps.MODELS["2m"][1]}  # fmt: skip


def test_bench_step_writes_what_it_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_step, "PHASE_SETTINGS", {"minute": MINUTE})
    bench_step.main(bench_step.Args(repeats=2, device="cpu", out=tmp_path))
    record = json.loads((tmp_path / "bench_step_cpu.json").read_text())
    result = record["results"]["minute"]
    assert result["correctness"]["greedy_tokens_equal"] == 1.0
    assert result["correctness"]["logps_largest_difference"] < 1e-4
    assert result["correctness"]["gradient_relative_difference"] < 1e-4
    assert {len(s) for side in result["seconds"].values() for s in side.values()} == {2}
    assert record["versions"]["torch"] and len(record["git_commit"] or "x" * 40) == 40
    assert "| minute: 2 x 2 x 3 tokens, 56-px image | rollout |" in capsys.readouterr().out


def test_profile_parts_add_up(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(profile_step, "STEP_SETTINGS", {"minute": MINUTE})
    profile_step.main(profile_step.Args(repeats=1, device="cpu", out=tmp_path))
    parts = json.loads((tmp_path / "profile_step_cpu.json").read_text())["results"]["minute"]["parts"]
    inside = [values["seconds"] for name, values in parts.items() if name.startswith("decoding: ")]
    assert sum(inside) == pytest.approx(parts["decoding"]["seconds"])
    assert parts["update: backward"]["operations"] == 2 * parts["update: forward"]["operations"]
    assert "| minute | decoding |" in capsys.readouterr().out


def test_a_published_shape_has_random_weights(monkeypatch):
    monkeypatch.setitem(plan.SHAPES, "Minute-VL", SHAPE)
    setting = steps.real_settings("minute-vl", prompts=3)["r400-kl"]
    assert (setting.model, setting.prompts, setting.kl) == ("Minute-VL", 3, 0.04)
    vlm = steps.load(setting, seed=0)
    assert vlm.head_weight.shape == (1536, 192) and not vlm.base.config.tie_word_embeddings
    pictures, questions = steps.inputs(Setting(1, 2, 3, 896), seed=0)
    assert int((vlm.prompt(questions[0], pictures).input_ids == vlm.image_token_id).sum()) == 1024


@pytest.mark.parametrize("options,words", [
    ({"settings": ["nothing"]}, "--settings nothing"),
    ({"config": "qwen2.5-vl-3b"}, "--random-weights"),
    ({"config": "gpt", "random_weights": True}, "--config gpt"),
    ({"against": "trl", "clock": "cpu"}, "--clock"),
])  # fmt: skip
def test_errors_are_sentences(options, words):
    with pytest.raises(SightRLError, match=words):
        bench_step.main(bench_step.Args(**options))
