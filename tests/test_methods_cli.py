"""The method scripts from the outside: help, presets, the plan, two-step runs, kill and resume."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import jsonl, read_lines
from method_runs import GROUPS, MINUTE, killed_and_resumed, metrics, only_run, parse, summary
from PIL import Image

import common.grpo
import common.logprob
import common.rollout
import common.training
from common.args import CommonArgs, chosen_defaults, option_help, typed
from common.data import Sample, Stream, open_dataset
from common.errors import SightRLError
from methods import grpo, sft, vppo

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"grpo": grpo, "vppo": vppo, "sft": sft}
pytestmark = pytest.mark.usefixtures("coin_grades")


def small(name: str, out: Path, **options):
    own = {"batch_size": 3} if name == "sft" else GROUPS | {"filter_groups": "off"}
    return METHODS[name].Args(**MINUTE | own | dict(out=str(out)) | options)


# ------------------------------------------------------------------------------------------- help and options
@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_explained_in_one_line(name):
    texts = option_help(METHODS[name].Args)
    for field in dataclasses.fields(METHODS[name].Args):
        text = texts.get(field.name, "")
        assert 15 < len(text) < 140 and text[-1] in '.:"', (field.name, text)


def test_help_and_imports_do_not_wait_for_torch():
    code = (
        "import sys, methods.grpo as g, methods.vppo, methods.sft\n"
        "try:\n    g.parse_args(g.Args, g.__doc__, ['--help'], preset=g.PRESETS, variant=g.VARIANTS)\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'transformers', 'scipy', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--clip-high FLOAT" in done.stdout and "eps_high" in done.stdout
    assert re.search(r"--variant gspo sets --ratio sequence --clip-low\s+0.0003", done.stdout)
    assert re.search(r"--preset paper-7b sets .*--gradient-checkpointing\s+--gpus\s+8", done.stdout, re.DOTALL)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_presets_set_defaults_and_what_is_typed_wins():
    args = parse(vppo, "--preset", "paper-8b", "--lr=2e-6", "--group_size", "5")
    assert (args.lr, args.group_size, args.entropy_coef, args.max_new_tokens) == (2e-6, 5, 0.12, 8192)
    args = parse(vppo, "--group-size", "8", "--preset=paper-32b")
    assert (args.preset, args.gpus, args.max_new_tokens, args.keep_share) == ("paper-32b", 32, 4096, 0.4)
    assert parse(vppo) == vppo.Args()


def test_published_values_of_the_cards():
    args = parse(vppo, "--preset", "paper-7b")
    published = dict(
        group_size=8, temperature=1.0, top_p=0.99, max_new_tokens=2048, prompts_per_step=384, lr=1e-6,
        mini_batch_prompts=128, filter_groups="mean", filter_low=0.01, filter_high=0.99, clip_low=0.2,
        clip_high=0.28, dual_clip=3.0, keep_share=0.4, beta_min=0.9, entropy_coef=0.06, kl_coef=0.0,
        weight_decay=0.01, max_grad_norm=1.0, train_vision=True, min_pixels=200704, max_pixels=1003520,
        loss_mean="token_mean", overlong_buffer=0.0, format_weight=0.0, blacken_prob=0.5)  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


def test_variants_of_grpo():
    gspo = parse(grpo, "--variant", "gspo", "--clip-high", "0.5")
    assert (gspo.ratio, gspo.clip_low, gspo.clip_high, gspo.loss_mean) == ("sequence", 3e-4, 0.5, "sequence_mean")
    dapo = parse(grpo, "--variant", "dapo", "--preset", "paper-7b")
    assert (dapo.filter_groups, dapo.overlong_buffer, dapo.kl_coef, dapo.lr) == ("mean", 0.2, 0.0, 1e-6)
    dr = parse(grpo, "--variant", "dr_grpo")
    assert (dr.advantage, dr.loss_mean) == ("mean_only", "token_sum_over_budget")


@pytest.mark.parametrize("module", [grpo, vppo])
def test_dapo_punishes_length_by_at_most_half_of_what_a_wrong_answer_costs(module):
    """In DAPO right and wrong are 1 and -1, and the punishment goes down to -1; here right and wrong are 1 and 0."""
    args = dataclasses.replace(parse(module), group_size=2, max_new_tokens=20, overlong_buffer=0.2)
    sample = Sample("1", "How many?", "3", "count", [])
    lengths = torch.tensor([20, 16])
    batch = SimpleNamespace(texts=["\\boxed{3}", "\\boxed{4}"], logps=torch.zeros(2, 20),
                            mask=torch.arange(20) < lengths[:, None])  # fmt: skip
    right, terms = module.score(args, batch, [sample])
    assert set(right.tolist()) <= {0, 1} and torch.equal(terms["accuracy"], right)
    assert terms["overlong"].tolist() == [-0.5, 0]


def test_typed_reads_both_spellings_and_ignores_the_rest():
    assert typed(["--run_name", "a", "--preset=b"], "run-name") == "a"
    assert typed(["--run_name", "a", "--preset=b"], "preset") == "b"
    assert typed(["--data", "preset"], "preset") == "" == typed(["--resume"], "resume")
    assert chosen_defaults(vppo.Args, ["--preset", "nonsense"], {"preset": vppo.PRESETS}) == {}


def test_resume_takes_the_options_of_the_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"lr": 0.5, "preset": "paper-7b", "group_size": 4, "gone": 1}))
    args = parse(grpo, "--resume", str(tmp_path), "--steps", "7")
    assert (args.lr, args.preset, args.group_size, args.steps) == (0.5, "paper-7b", 4, 7)
    assert args.resume == str(tmp_path)


PAPERS = sorted({path.stem for path in (ROOT / "methods").glob("*.py")} - {"grpo", "sft"})


@pytest.mark.parametrize("name", PAPERS)
def test_the_difference_to_grpo_stays_readable(name):
    files = [(ROOT / "methods" / f"{name}.py").read_text().splitlines() for name in ("grpo", name)]
    changes = [line[0] for line in difflib.unified_diff(*files, n=0) if line[:3] not in ("---", "+++")]
    assert changes.count("+") <= 150


def test_bad_options_are_one_sentence():
    script = [sys.executable, "methods/vppo.py", "--group-size", "1"]
    done = subprocess.run(script, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --group-size")
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------- the plan
@pytest.mark.slow
def test_plan_counts_parameters_like_the_papers(capsys):
    from common.plan import count_parameters, model_config

    assert count_parameters(model_config("Qwen/Qwen2.5-VL-3B-Instruct")).total == pytest.approx(3.75e9, rel=2e-3)
    seven = model_config("Qwen/Qwen2.5-VL-7B-Instruct")
    assert count_parameters(seven).total == pytest.approx(8.29e9, rel=1e-3)
    assert count_parameters(seven, lora_rank=16).trainable < 5e7
    assert count_parameters(model_config("Qwen/Qwen2-VL-2B-Instruct")).total == pytest.approx(2.209e9, rel=1e-3)
    assert count_parameters(model_config("Qwen/Qwen2-VL-7B-Instruct")).total == pytest.approx(8.291e9, rel=1e-3)
    for module in (vppo, grpo, sft):
        preset = "7b" if module is sft else "paper-7b"
        module.main(parse(module, "--preset", preset, "--lr", "3e-6", "--dry-run"))
        printed = " ".join(capsys.readouterr().out.split())
        assert "8.292 billion" in printed and "--lr" in printed and "3e-06" in printed and "you" in printed


def test_plan_divides_what_the_processes_share_out():
    from common.plan import Parameters, memory_per_gpu, model_config

    config, count = model_config("Qwen/Qwen2.5-VL-7B-Instruct"), Parameters(total=100, vision=20, trainable=80)
    words = ["--preset", "paper-7b", "--kl-coef", "0.1"]
    one, eight = (memory_per_gpu(parse(vppo, *words, "--gpus", n), config, count) for n in "18")
    for memory in (one, eight):  # bytes: whole on every GPU
        assert (memory["weights"], memory["gradients"], memory["reference copy"]) == (200, 160, 200)
    assert one["Adam (two moments)"] == 320
    assert eight["float32 masters and Adam, shared out"] == 16 * 80 / 8


def test_plan_refuses_a_model_it_cannot_know():
    from common.plan import model_config

    with pytest.raises(SightRLError, match="Qwen2.5-VL-3B"):
        model_config("some/unknown-model")


# ------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("name", METHODS)
def test_two_steps_from_end_to_end(name, tmp_path, capsys):
    METHODS[name].main(small(name, tmp_path))
    folder = only_run(tmp_path)
    for file in ("config.json", "metrics.jsonl", "summary.json", "eval_before.json", "eval_after.json", "report.html"):
        assert (folder / file).stat().st_size > 0
    rows = metrics(folder)
    assert [row["step"] for row in rows] == [0, 1] and all(row["grad_norm"] is not None for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)
    assert "Held-out accuracy" in capsys.readouterr().out
    if name != "sft":
        assert all(row["logp_mismatch"] < 1e-4 for row in rows)
        record = read_lines(folder / "rollouts.jsonl")[0]
        assert {"response", "rewards", "advantage", "habit", "tokens"} <= set(record)
    if name == "vppo":
        assert len(record["dependency"]) == len(record["kept"]) == len(record["tokens"])
        assert {"dependency", "kept", "tas/alpha_min", "tas/alpha_max", "variance_ratio"} <= set(rows[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", dict(variant="grpo_paper", kl_coef=0.04, loss_mean="sequence_mean", mini_batch_prompts=2)),
        ("grpo", dict(ratio="sequence", advantage="mean_only", overlong_buffer=0.5, format_weight=0.1)),
        ("grpo", dict(loss="cispo", advantage="rloo", mask_truncated=True, recompute_old_logps=True)),
        ("grpo", dict(filter_groups="std", max_rounds=2, gen_prompts=2, train_vision=False, micro_tokens=1)),
        ("grpo", dict(lora_rank=2, kl_coef=0.1, kl_kind="k1", train_vision=False)),
        ("vppo", dict(model="random:qwen3_vl", variant="grpo", clip_high=0.2)),
        ("vppo", dict(mask_source="random", tas=False, perturb_each="group", perturbation="noise")),
        ("vppo", dict(mask_source="entropy", soft_mask=True, dependency="prob_drop", perturbation="blur")),
        ("vppo", dict(mask_source="none", beta_min=0.8, beta_max=1.2, perturbation="grey", micro_tokens=200)),
        ("vppo", dict(limit=4, eval_every=1, eval_questions=2, eval_k=1)),
        ("sft", dict(world_habit="mixture", micro_tokens=100)),
    ],
)
def test_other_options_run(name, options, tmp_path):
    METHODS[name].main(small(name, tmp_path, **({"steps": 1, "eval_questions": 0} | options)))
    assert (only_run(tmp_path) / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "vppo"])
def test_the_policy_learns_what_is_rewarded(name, tmp_path, monkeypatch):
    """Rewarded for a letter in the lower half of the code table, a random model soon writes nothing else."""
    monkeypatch.setattr("common.rewards.accuracy", lambda text, sample: float(text[:1] < "A"))
    options = dict(steps=15, max_new_tokens=1, prompts_per_step=4, group_size=8, lr=5e-3, checkpoint_every=0)
    METHODS[name].main(small(name, tmp_path, **options, eval_questions=0, entropy_coef=0.0))
    rewards = [row["reward/mean"] for row in metrics(only_run(tmp_path))]
    assert rewards[0] < 0.5 and sum(rewards[-3:]) / 3 > 0.8, rewards


def test_truncated_answers_can_be_left_out_of_the_loss(tmp_path, monkeypatch):
    """Every second answer to every question is cut off: the loss is that of the others."""
    masks, plain = {}, common.grpo.aggregate
    monkeypatch.setattr("common.grpo.aggregate", lambda losses, mask, *words, **more: (
        masks.setdefault(len(masks), (mask, more["tokens"])), plain(losses, mask, *words, **more))[1])  # fmt: skip
    sample = common.rollout.rollout

    def rollout(*words, **more):
        batch = sample(*words, **more)
        batch.truncated = torch.arange(len(batch.tokens)) % 2 == 0
        return batch

    monkeypatch.setattr("common.rollout.rollout", rollout)
    for left_out in (True, False):
        masks.clear()
        options = dict(steps=1, eval_questions=0, group_size=4, mask_truncated=left_out, entropy_coef=0.1)
        grpo.main(small("grpo", tmp_path / str(left_out), **options))
        ((mask, tokens),) = masks.values()
        assert mask[1::2].any(1).all() and mask[0::2].any() != left_out and tokens == mask.sum()


def test_supervised_training_learns_whole_responses_and_their_end(tmp_path, monkeypatch):
    seen, plain = [], common.logprob.response_logps

    def noted(vlm, prompts, tokens, mask, **more):
        logps, entropies = plain(vlm, prompts, tokens, mask, **more)
        seen.append((vlm, tokens, mask, logps.detach()))
        return logps, entropies

    monkeypatch.setattr("common.logprob.response_logps", noted)
    sft.main(small("sft", tmp_path, steps=1, eval_questions=0, micro_tokens=1, max_target_tokens=1000))
    texts = [sft.target(sample, "careful") for sample in Stream(open_dataset("world", "train")).next(3)]
    learned = [vlm.decode(tokens[mask].tolist()) for vlm, tokens, mask, _ in seen]
    assert sorted(learned) == sorted(texts) and all(tokens[mask][-1] in vlm.eos_ids for vlm, tokens, mask, _ in seen)
    (row,) = metrics(only_run(tmp_path))
    assert row["loss"] == pytest.approx(float(-torch.cat([logps[mask] for *_, mask, logps in seen]).mean()), rel=1e-5)


def test_evaluations_sample_at_temperature_one_and_validation_is_greedy(tmp_path, monkeypatch):
    asked, plain = [], common.training.evaluate
    monkeypatch.setattr("common.training.evaluate", lambda *words, **more: (
        asked.append((more["k"], more["temperature"])), plain(*words, **more))[1])  # fmt: skip
    grpo.main(small("grpo", tmp_path, steps=2, eval_every=2, temperature=0.5))
    assert asked == [(2, 1.0), (1, 0.0), (2, 1.0)]


def test_budget_stops_the_run(tmp_path):
    grpo.main(small("grpo", tmp_path, steps=50, budget_tokens=60, eval_questions=0))
    rows = metrics(only_run(tmp_path))
    assert rows[-1]["tokens_generated"] >= 60 and len(rows) < 50
    assert len(rows) == 1 or rows[-2]["tokens_generated"] < 60


def test_skipped_rows_are_shown_at_the_end(tmp_path, capsys):
    Image.new("RGB", (56, 56), "red").save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [{"question": "What color is it?", "answer": "red", "image": f"{name}.png"} for name in ("good", "broken")]
    options = dict(data=jsonl(tmp_path / "d.jsonl", rows), bad_rows="skip", eval_questions=0, prompts_per_step=2)
    grpo.main(small("grpo", tmp_path / "runs", **options))
    (skipped,) = summary(only_run(tmp_path / "runs"))["skipped"]
    assert "d.jsonl line 2" in skipped
    assert "skipped 1 data rows that could not be read" in capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_equals_uninterrupted(name, tmp_path):
    args = lambda out, **more: small(name, Path(out), steps=3, **more)  # noqa: E731
    killed_and_resumed(METHODS[name].main, args, tmp_path, step=2)


def test_common_options_are_the_same_everywhere():
    fields = {f.name for f in dataclasses.fields(CommonArgs)}
    assert all(fields <= {f.name for f in dataclasses.fields(m.Args)} for m in METHODS.values())


def test_the_evaluation_before_training_can_be_taken_from_another_run(tmp_path):
    grpo.main(small("grpo", tmp_path / "a"))
    first = only_run(tmp_path / "a")
    grpo.main(small("grpo", tmp_path / "b", seed=1, base_from=str(first)))
    second = only_run(tmp_path / "b")
    same = [json.loads((folder / "eval_before.json").read_text()) for folder in (first, second)]
    assert same[0] == same[1]
    with pytest.raises(SightRLError, match="asked other questions"):
        grpo.main(small("grpo", tmp_path / "c", base_from=str(first), eval_questions=3))
