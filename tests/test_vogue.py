"""methods/vogue.py against the golden vectors of its official code, its functions one by one, and whole small runs."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import close
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import (
    GROUPS,
    MINUTE,
    ONE_STEP,
    TableModelWithPictures,
    assert_same_tensors,
    killed_and_resumed,
    metrics,
    only_run,
    stand_in,
    summary,
    table_rollout,
)

from common.args import parse_args
from common.contrast import Contrast, reliance
from common.errors import SightRLError
from common.grpo import group_advantages
from common.training import Budget
from common.world.layouts import PROMPTS
from methods import grpo
from methods.vogue import PRESETS, VARIANTS, Args, bonus, check, main, perturb, schedule, uncertainty

pytestmark = pytest.mark.usefixtures("coin_grades")
SMALL = MINUTE | GROUPS | dict(eval_k=4)
# One group of four responses to one question, rewards 1, 0, 0, 1; arithmetic of compute_grpo_outcome_advantage_dupl.
RAW = torch.tensor([[-0.1, -0.5], [-1.0, -0.2], [-0.3, 0.0], [-2.0, -0.05]])
AUG = torch.tensor([[-0.1, -3.0], [-0.4, -0.2], [-5.0, 0.0], [-0.1, -0.05]])
MASK = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]]).bool()
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0])
PLAIN = group_advantages(REWARDS, 4)[:, None]  # [4, 1]
U = [[0, 0.695929], [0.090732, 0], [1.725089, 0], [0.731027, 0]]
SHAPED = [[0.866024, 1.299036], [-0.775292, -0.866024], [-0.433012, 0], [1.299036, 0.866024]]  # alpha 1, all noisy
CODE = Args(**VARIANTS["code"])


def contrast(raw=RAW, aug=AUG, **fields) -> Contrast:
    zeros = dict.fromkeys(Contrast._fields, torch.zeros_like(raw))
    return Contrast(**zeros | {"logps": raw, "other_logps": aug} | fields)


def shaped(u, alpha, noisy=True, m=1.0):
    return (PLAIN + bonus(alpha * m * u * noisy, PLAIN, 2.0)) * MASK


# --------------------------------------------------------------------------------------------- golden vectors
def test_golden_1_uncertainty_of_the_sampled_tokens():
    close(uncertainty(CODE, contrast()) * MASK, U)


def test_golden_2_3_advantages():
    u = uncertainty(CODE, contrast()) * MASK
    close(shaped(u, 1.0), SHAPED)
    expected = [[0.866024, 0.935617], [-0.856951, -0.866024], [-0.693515, 0], [0.939127, 0.866024]]
    close(shaped(u, CODE.alpha_visual), expected)


def test_golden_4_only_the_noisy_branch_gets_the_bonus():
    u = uncertainty(CODE, contrast()) * MASK
    close(shaped(u, 1.0, noisy=torch.tensor([[1.0], [0], [1], [0]])),
          [SHAPED[0], [-0.866024] * 2, SHAPED[2], [0.866024] * 2])  # fmt: skip


def test_golden_5_forward_only_can_be_negative():
    u = uncertainty(Args(kl="sampled", kl_forward=True), contrast()) * MASK
    assert u[1, 0] < 0
    close(shaped(u, 1.0)[1, 0], -1.086752)
    close(shaped(u, 1.0)[3, 0], 0.608887)


def test_golden_6_curriculum():
    for step, m in ((0, 1), (89, 1), (90, 1), (113, 0), (136, -1), (137, -1), (200, -1)):
        assert schedule(Args(kl_transition=True), step, 200)[1] == pytest.approx(m)
        assert schedule(Args(), step, 200)[1] == 1


def test_golden_7_annealing():
    assert [schedule(Args(), step, 200)[0] for step in (0, 100, 200, 201)] == [1, 0.5, 0, 0]
    assert [schedule(Args(noisy_end=0.5), step, 200)[0] for step in (0, 100, 200)] == [1, 0.75, 0.5]
    assert schedule(Args(noisy_end=1.0), 150, 200)[0] == 1


def test_golden_8_entropy_bonus():
    A = torch.tensor(-0.866024)
    close(bonus(0.4 * torch.tensor([0.5, 2.0]), A, 2.0), [0.2, 0.433012])


def test_golden_advantages():
    close(PLAIN[:, 0], [0.866024, -0.866024, -0.866024, 0.866024])


# ------------------------------------------------------------------------------------------------- the pieces
def test_full_uncertainty_is_the_mean_of_both_divergences_or_the_first():
    two = contrast(forward=torch.full((4, 2), 0.2), backward=torch.full((4, 2), 0.6))
    close(uncertainty(Args(), two), [[0.4] * 2] * 4)
    close(uncertainty(Args(kl_forward=True), two), [[0.2] * 2] * 4)


numbers = st.floats(-30, 30, width=32)


@settings(deadline=None, derandomize=True)
@given(A=numbers, u=numbers, entropy=st.floats(0, 12, width=32), m=st.floats(-1, 1, width=32),
       alphas=st.tuples(*[st.floats(0, 100, width=32)] * 2), beta=st.floats(2, 9, width=32))  # fmt: skip
def test_no_bonus_turns_the_sign_of_an_advantage(A, u, entropy, m, alphas, beta):
    A = torch.tensor(A)
    g_per = bonus(torch.tensor(alphas[0] * m * u), A, beta)
    for cap in (A, A + g_per):
        total = A + g_per + bonus(torch.tensor(alphas[1] * entropy), cap, beta)
        assert total * A >= 0 and abs(total) <= 2.25 * A.abs() * (1 + 1e-6)
        assert total == 0 or A != 0  # a group without spread gets no bonus


def test_noise_has_the_asked_spread_and_keeps_size_and_type():
    image = np.full((30, 46, 3), 128, dtype=np.uint8)
    noisy = perturb(Args(noise_std=0.1), image, np.random.default_rng(0))
    assert noisy.shape == image.shape and noisy.dtype == np.uint8 and (image == 128).all()
    assert abs(noisy.std() - 25.5) < 1 and abs(noisy.mean() - 128) < 2
    assert (perturb(Args(noise_std=0.0), image, np.random.default_rng(0)) == image).all()
    clipped = perturb(Args(noise_std=0.4), np.full((64, 64, 3), 255, np.uint8), np.random.default_rng(0))
    assert (clipped == 255).mean() == pytest.approx(0.5, abs=0.03)  # not wrapped around


@pytest.mark.parametrize("kind", ["jitter", "all"])
def test_other_perturbations_keep_size_and_type(kind):
    image = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    args = Args(perturbation=kind, noise_std=0.0)
    several = [perturb(args, image, np.random.default_rng(seed)) for seed in range(4)]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in several)
    assert all((one != image).any() for one in several) and (several[0] != several[1]).any()
    assert (several[0] == perturb(args, image, np.random.default_rng(0))).all()


def test_jitter_leaves_the_hue_alone():
    red = np.zeros((28, 28, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    for seed in range(20):
        pixel = perturb(Args(perturbation="jitter", noise_std=0.0), red, np.random.default_rng(seed))[0, 0]
        assert pixel[0] > pixel[1] and abs(int(pixel[1]) - int(pixel[2])) <= 1


@pytest.mark.parametrize(("options", "message"), [
    (dict(perturbation="all"), "--wrong-labels"),
    (dict(perturbation="all", data="world:val"), "--wrong-labels"),
    (dict(beta=1.9), "--beta"),
    (dict(beta=float("nan")), "--beta"),
    (dict(group_size=1), "--group-size"),
    (dict(temperature=0.0), "--temperature"),
])  # fmt: skip
def test_bad_options_are_refused(options, message):
    with pytest.raises(SightRLError, match=message) as error:
        check(Args(**options))
    assert str(error.value).count(".") <= 3 and "\n" not in str(error.value)


def test_flips_are_allowed_where_they_do_no_harm_or_are_wanted():
    check(Args(perturbation="all", wrong_labels=True))
    check(Args(perturbation="all", data="jsonl:my.jsonl"))


def test_schedules_follow_what_runs_out_first():
    budget = Budget(1000, 0.0)
    assert budget.progress(0, 150) == (0, 1000)
    budget.tokens = 500
    assert budget.progress(15, 150) == (500, 1000) and budget.progress(100, 150) == (100, 150)
    assert Budget(0, 9.0).progress(3, 150) == (3, 150)


def test_presets_and_variants_are_the_published_ones():
    choices = {"preset": PRESETS, "variant": VARIANTS}
    assert parse_args(Args, "", [], **choices) == Args()
    paper = parse_args(Args, "", ["--preset", "paper-7b"], **choices)
    published = dict(model="Qwen/Qwen2.5-VL-7B-Instruct", data="hf:XenoZLH/MMRL30k", steps=200, group_size=5,
                     prompts_per_step=256, mini_batch_prompts=128, noise_std=0.4, alpha_visual=1.0, alpha_entropy=0.4,
                     beta=2.0, lr=1e-6, clip_low=0.2, clip_high=0.3, kl_coef=0.0, noisy_end=0.0, kl="full")  # fmt: skip
    assert {name: getattr(paper, name) for name in published} == published
    code = parse_args(Args, "", ["--variant", "code", "--preset", "paper-7b"], **choices)
    assert (code.kl, code.alpha_visual, code.entropy_cap, code.lr) == ("sampled", 0.1, "shaped", 1e-6)
    assert Args().prompt == PROMPTS["boxed"]


# -------------------------------------------------------------------------- the golden vectors through main()
ENTROPY = torch.tensor([[0.5, 2.0], [0.1, 0.5], [2.0, 0.0], [0.0, 1.0]])


def table_logps(vlm, prompts, tokens, mask, **options):
    logps = vlm.table - RAW + AUG if hasattr(prompts[0], "replaced") else vlm.table
    return logps * mask, ENTROPY


def gradient_of_one_step(monkeypatch, tmp_path, **options) -> tuple[torch.Tensor, dict]:
    """(gradient of the loss for every token's log-prob, metrics) of one step of main() on the table."""
    vlm, texts = TableModelWithPictures(RAW), ["good", "bad", "bad", "good"]
    sample = SimpleNamespace(id="1", task="t", question="q", answer="a", meta={})
    stand_in(monkeypatch, vlm, [sample], {
        "common.rollout.rollout": lambda vlm, prompts, group_size, **_: table_rollout(prompts, texts, MASK, RAW),
        "common.logprob.response_logps": table_logps,
        "common.contrast.response_contrast": lambda vlm, prompts, others, tokens, mask, **_: contrast(
            RAW * mask, AUG * mask, forward=torch.tensor(U), backward=torch.tensor(U)),
        "common.rewards.accuracy": lambda text, sample: float(text == "good"),
    })  # fmt: skip
    main(Args(out=str(tmp_path), **ONE_STEP, group_size=4, **options))
    (row,) = metrics(only_run(tmp_path))
    return sum(vlm.gradients[0]), row


@pytest.mark.parametrize("kl", ["sampled", "full"])  # the table's divergences are those of the sampled tokens
def test_main_reproduces_the_golden_advantages(monkeypatch, tmp_path, kl):
    gradient, row = gradient_of_one_step(monkeypatch, tmp_path, kl=kl, alpha_entropy=0.0)
    close(gradient, (torch.tensor(SHAPED) / -7).tolist())  # r = 1 at the first update, token mean over 7 tokens
    assert row["noisy"] == 1 and row["sign_flips"] == 0 and row["u"] == pytest.approx(sum(map(sum, U)) / 7, abs=1e-6)


@pytest.mark.parametrize("cap", ["plain", "shaped"])
@pytest.mark.parametrize("branch", ["raw", "noisy"])
def test_main_with_both_bonuses_equals_the_formula_in_float64(monkeypatch, tmp_path, cap, branch):
    gradient, row = gradient_of_one_step(monkeypatch, tmp_path, kl="sampled", entropy_cap=cap, ratio_branch=branch)
    for i, reward in enumerate(REWARDS.tolist()):
        std = np.std(REWARDS.double().numpy(), ddof=1)
        A = (reward - 0.5) / (std + 1e-6)
        for t in range(int(MASK[i].sum())):
            a, b, h = (float(x[i, t]) for x in (RAW, AUG, ENTROPY))
            u = 0.5 * (np.exp(a) - np.exp(b)) * (a - b)  # up to the code's 1e-8
            g_per = min(abs(A) / 2, u)
            g_out = min(abs(A + g_per if cap == "shaped" else A) / 2, 0.4 * h)
            assert gradient[i, t].item() == pytest.approx(-(A + g_per + g_out) / 7, abs=1e-6)
    assert row["sign_flips"] == 0 and row["logp_mismatch"] == 0


def test_main_without_bonuses_is_grpo(monkeypatch, tmp_path):
    gradient, row = gradient_of_one_step(monkeypatch, tmp_path, alpha_visual=0.0, alpha_entropy=0.0)
    close(gradient, (PLAIN * MASK / -7).tolist())
    assert "u" not in row


# ------------------------------------------------------------------------------------------------- whole runs
def test_two_steps_from_end_to_end(tmp_path, capsys):
    main(Args(**SMALL, out=str(tmp_path)))
    folder = only_run(tmp_path)
    rows, effects = metrics(folder), summary(folder)["effects"]
    assert [row["step"] for row in rows] == [0, 1] and rows[0]["noisy"] == 1
    assert all(row["logp_mismatch"] < 1e-4 and row["sign_flips"] == 0 for row in rows)
    assert rows[0]["u"] > 0 and {"u/visual", "u/template"} <= set(rows[0])
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)  # the second pass generates nothing
    assert {"u", "entropy", "u visual/template ratio", "pass@4"} == set(effects)
    assert all(np.isfinite(list(pair.values())).all() for pair in effects.values())
    record = json.loads((folder / "rollouts.jsonl").read_text().splitlines()[0])
    assert len(record["u"]) == len(record["bonus"]) == len(record["tokens"])
    assert "pass@4" in capsys.readouterr().out and (folder / "report.html").exists()


def test_without_bonuses_a_run_is_that_of_grpo_bit_for_bit(tmp_path):
    options = SMALL | dict(eval_questions=0)
    main(Args(**options, out=str(tmp_path / "vogue"), alpha_visual=0.0, alpha_entropy=0.0))
    grpo.main(grpo.Args(**options, out=str(tmp_path / "grpo")))
    assert_same_tensors(only_run(tmp_path / "vogue") / "model", only_run(tmp_path / "grpo") / "model")


@pytest.mark.parametrize("options", [
    dict(variant="code", **VARIANTS["code"], kl_transition=True, noisy_end=1.0, recompute_old_logps=True),
    dict(kl_forward=True, perturbation="all", wrong_labels=True, filter_groups="std", max_rounds=2),
    dict(ratio_branch="noisy", kl_coef=0.1, mini_batch_prompts=2, train_vision=False, micro_tokens=100),
    dict(shuffle_u=True, alpha_entropy=0.0, perturbation="jitter", noise_std=0.2, model="random:qwen3_vl"),
    dict(alpha_visual=0.0, beta=3.0, format_weight=0.1, budget_tokens=40, lora_rank=2),
])  # fmt: skip
def test_other_options_run(options, tmp_path):
    main(Args(**SMALL | {"steps": 1, "eval_questions": 0} | options, out=str(tmp_path)))
    (row,) = metrics(only_run(tmp_path))
    assert row["sign_flips"] == 0 and np.isfinite(row["loss"])
    assert ("u" in row) == bool(options.get("alpha_visual", 1))


def test_shuffling_keeps_each_response_s_uncertainties(tmp_path):
    """Same seed, same first rollout: the control has the same numbers in every response, in another order."""
    records = []
    for name, shuffle in (("plain", False), ("shuffled", True)):
        main(Args(**SMALL | {"steps": 1, "eval_questions": 0}, out=str(tmp_path / name), shuffle_u=shuffle))
        records.append([json.loads(line)["u"] for line in (only_run(tmp_path / name) / "rollouts.jsonl").open()])
    assert [sorted(row) for row in records[0]] == [sorted(row) for row in records[1]] and records[0] != records[1]


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    options = SMALL | dict(eval_questions=1, steps=4, shuffle_u=True, seed=1, perturbation="jitter")
    whole = killed_and_resumed(main, lambda **more: Args(**options | more), tmp_path, step=2)
    assert {row["noisy"] for row in metrics(whole)} == {0, 1}  # else this proves little


@pytest.mark.slow
def test_uncertainty_is_larger_on_the_words_that_noise_hides():
    """Noise of 0.2 takes the digits from the tiny VLM and leaves it the colours; u per word must say so."""
    from common.contrast import response_contrast
    from common.rollout import rollout
    from common.training import load_model, make_prompt, questions

    args = Args(eval_questions=24, tasks="number,relation")
    vlm, rng = load_model(args), np.random.default_rng(0)
    samples = questions(args, "test")
    prompts = [make_prompt(vlm, sample, args.prompt) for sample in samples]
    batch = rollout(vlm, prompts, 2, max_new_tokens=80, generator=torch.Generator().manual_seed(0))
    noisy = [vlm.replace_images(p, [perturb(args, image, rng) for image in p.images]) for p in prompts]
    u = uncertainty(args, response_contrast(vlm, prompts, noisy, batch.tokens, batch.mask))
    found = {"color": [], "number": []}
    for n, row in enumerate(batch.tokens.tolist()):
        strings = vlm.token_strings(row[: int(batch.mask[n].sum())])
        ends = np.cumsum([len(string) for string in strings])
        for name, pattern in {"color": r"Then \S+ ([a-z]+)", "number": r": \S+ [a-z]+ [a-z]+ ([0-9])"}.items():
            for match in re.finditer(pattern, "".join(strings)):
                here = (ends > match.start(1)) & (ends - [len(string) for string in strings] < match.end(1))
                found[name].append(u[n, : len(strings)][torch.tensor(here)].sum().item())
    assert min(map(len, found.values())) >= 8
    assert np.mean(found["number"]) > 2 * np.mean(found["color"]), found


def test_reliance_is_repeatable_and_zero_without_damage():
    from common.training import load_model

    args = Args(**SMALL)
    vlm = load_model(args)
    state = torch.get_rng_state()
    untouched = reliance(vlm, args, 6, lambda image, rng: image)
    assert untouched["u"] < 1e-6 and untouched["entropy"] > 0
    noisy = [reliance(vlm, args, 6, lambda image, rng: perturb(args, image, rng)) for _ in range(2)]
    assert noisy[0] == noisy[1] and noisy[0]["u"] > 1e-6 and noisy[0]["entropy"] == untouched["entropy"]
    assert torch.equal(state, torch.get_rng_state())
    assert reliance(vlm, Args(eval_questions=0), 6, lambda image, rng: image) == {}
