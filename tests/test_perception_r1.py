"""methods/perception_r1.py against the golden vectors of its official code, its reward piece by piece, whole runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import coin, jsonl, read_lines, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import GROUPS, MINUTE, killed_and_resumed, metrics, only_run, parse, summary
from PIL import Image
from servers import completion

from common.data import Sample, open_dataset
from common.errors import SightRLError
from common.evaluation import Evaluation, compare_evaluations
from common.judge import open_judge
from common.rewards import repetition
from common.tasks.facts import (
    STATED_PROMPT,
    effects_of,
    make_facts,
    oracle,
    perceived,
    tagged,
    tags,
    verdicts,
    visual_facts,
)
from common.world.layouts import PROMPTS
from methods import perception_r1
from methods.perception_r1 import Args, grade, has_layout, score, visual_rewards

ORACLE = open_judge("oracle", oracle=oracle)


def layout(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n<answer>\n{answer}\n</answer>"


def ask(text: str, answer: str = "24", facts: str = "") -> Sample:
    return Sample("1", "q", answer, "t", [], meta={"visual_key_info": facts})


def judge_saying(reply: str):
    return open_judge("oracle", oracle=lambda prompt: reply)


def reward(texts: list[str], samples: list[Sample], judge=ORACLE, **options) -> list[float]:
    args = Args(group_size=1, grader="math_verify", **options)
    batch = SimpleNamespace(logps=torch.zeros(len(texts), 1, dtype=torch.float64), texts=texts)
    return sum(score(args, judge, batch, samples)[1].values()).tolist()


# --------------------------------------------------------------------------------------------- golden vectors
def test_golden_1_to_7_accuracy_and_format():
    good = layout("x", "The answer is \\boxed{24}")
    cases = [(good, "24", 1.0), ("<think>x</think><answer>\\boxed{24}</answer>", "24", 0.9), ("24", "24", 0.9),
             (layout("x", "\\boxed{25}"), "24", 0.1), (layout("x", "\\boxed{}"), "24", 0.0), (good + "\n", "24", 0.9),
             (layout("x", "\\boxed{\\frac{1}{2}}"), "0.5", 1.0)]  # fmt: skip
    values = reward([text for text, _, _ in cases], [ask(text, gold) for text, gold, _ in cases])
    assert values == pytest.approx([expected for _, _, expected in cases], abs=1e-12)


GOLDEN_8 = [
    ("<info1>1</info1><info2>0</info2>\n<info3>1</info3>", 0.6666664), ("<info1>1</info1><info3>1</info3>", 0.999999),
    ("all of them", 0.0), ("<info1>yes</info1><info2>1</info2>", 0.4999998),
    ("<info1>5</info1><info2>-3</info2>", 0.4999998), ("<info1>0</info1> or <info1>1</info1>", 0.999999),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "expected"), GOLDEN_8)
def test_golden_8_visual_reward(reply, expected):
    sample = ask("", facts="<info1>a</info1>")
    assert visual_rewards(Args(), judge_saying(reply), ["x"], [sample]) == pytest.approx([expected], abs=5e-8)


def test_golden_9_ngram_penalty():
    words = [f"w{i % 10}" for i in range(40)]
    assert -2 * repetition(" ".join(words), 20) == pytest.approx(-1.0476190, abs=1e-7)
    assert repetition(" ".join(map(str, range(40))), 20) == 0 == repetition("", 1) == repetition("a b", 3)
    assert -2 * repetition("a b A b\na B", 2) == pytest.approx(-1.2)


@pytest.mark.parametrize(("lost", "gained", "p"), [(1, 5, 0.21875), (2, 4, 0.6875), (2, 10, 0.03857), (0, 0, 1.0)])
def test_golden_10_mcnemar(lost, gained, p):
    pairs = [(1, 0)] * lost + [(0, 1)] * gained + [(1, 1), (0, 0)]
    old, new = (Evaluation([{"id": str(i), "task": "t", "split": "test", "scores": [float(pair[side])]}
                            for i, pair in enumerate(pairs)], 1) for side in (0, 1))  # fmt: skip
    test = compare_evaluations(old, new)["mcnemar"]
    assert (test["lost"], test["gained"]) == (lost, gained) and test["p"] == pytest.approx(p, abs=5e-6)


def test_golden_11_total():
    text = layout("x", "The answer is \\boxed{24}")
    sample = ask(text, facts=tagged(["a", "b", "c"]))
    assert reward([text], [sample], judge_saying(GOLDEN_8[0][0])) == pytest.approx([1.4666665], abs=5e-8)


# ----------------------------------------------------------------------------------------- reward, piece by piece
def test_math_verify_reads_an_answer_on_one_line_alone():
    texts = ["<answer>7</answer> so \\boxed{24}", "<answer>7\n</answer> so \\boxed{24}", "<answer> 24 </answer> 25"]
    assert grade(Args(grader="math_verify"), texts, [ask("")] * 3) == [0.0, 1.0, 1.0]
    assert grade(Args(), ["\\boxed{red}", "\\boxed{blue}"], [ask("", "red")] * 2) == [1.0, 0.0]


def test_weights_and_items_without_facts():
    text = layout("a b a b a b", "\\boxed{24}")
    both = [ask(text, facts=tagged(["a"])), ask(text)]
    judge = judge_saying("<info1>1</info1>")
    assert reward([text] * 2, both, judge, ngram_weight=0) == pytest.approx([1.7, 1.0], abs=1e-6)
    assert reward([text], both[:1], None, visual_weight=0, ngram_weight=0) == pytest.approx([1.0])
    (value,) = reward([text], both[:1], None, visual_weight=0, ngram_size=2)
    assert value == pytest.approx(1 - 2 * repetition(text, 2))


def test_noise_flips_the_published_share_and_always_the_same():
    args = Args(judge_noise=0.2)
    samples = [replace(ask("", facts=tagged(["a", "b"])), id=str(i)) for i in range(1000)]
    judge = judge_saying("<info1>1</info1><info2>1</info2>")
    values = visual_rewards(args, judge, ["text"] * 1000, samples)
    assert 1 - sum(values) / 1000 == pytest.approx(0.2, abs=0.03)
    assert values == visual_rewards(args, judge, ["text"] * 1000, samples)
    assert values != visual_rewards(args, judge, ["other"] * 1000, samples)
    assert visual_rewards(args, judge, ["text"], [ask("")]) == [0.0]


def test_the_judge_is_shown_the_facts_and_the_response_untouched():
    seen = []
    judge = open_judge("oracle", oracle=lambda prompt: seen.append(prompt) or "")
    facts = "<info1>{AB} is $5$</info1>"
    visual_rewards(Args(), judge, ["I {facts} \\boxed{5}"], [ask("", facts=facts)])
    assert seen == [STATED_PROMPT.replace("{facts}", facts) + "I {facts} \\boxed{5}"]


def test_layout_prompt_is_what_the_tiny_vlm_knows():
    assert Args().prompt == PROMPTS["answer_boxed"]


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", "\\boxed{", "}", "x", "{"]))
TAGS = st.lists(st.sampled_from(["<info1>", "</info1>", "<info2>", "</info2>", "1", ".5", "nan", "\n", "-1e9"]))
LAYOUT = re.compile(r"<think>\n.*?\n</think>\n<answer>\n.*?\\boxed{.+?}.*?\n</answer>", re.DOTALL)


@settings(max_examples=300, deadline=None)
@given(PIECES.map("".join), st.booleans())
def test_layout_is_the_published_pattern(text, inside):
    text = f"<think>\n{text}\n</answer>" if inside else text
    assert has_layout(text) == bool(LAYOUT.fullmatch(text))


@settings(max_examples=300, deadline=None)
@given(TAGS.map("".join))
def test_tags_are_the_published_pattern(text):
    expected = []
    while match := re.search(rf".*<info{len(expected) + 1}>(.+?)</info{len(expected) + 1}>", text, re.DOTALL):
        expected.append(match.group(1))
    assert tags(text) == expected and len(verdicts(text)) == len(expected)
    assert all(0 <= value <= 1 for value in verdicts(text))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_gets_a_reward(text):
    args, sample = Args(), open_dataset("world", "test")[0]
    values = [has_layout(text), repetition(text, 4), *visual_rewards(args, ORACLE, [text], [sample]), *verdicts(text)]
    assert all(0 <= value <= 1 for value in values) and grade(args, [text], [sample])[0] in (0, 1)


def test_long_texts_take_linear_time():
    many = 200_000
    assert not has_layout("<think>\n" + "\n</think>\n<answer>\n\\boxed{" * many + "\n</answer>")
    assert verdicts("<info1>" * many) == []
    every = verdicts("".join(f"<info{k}>1</info{k}>" for k in range(1, many)))
    assert len(every) > 1000 and set(every) == {1.0}  # of as much as is read at all
    assert grade(Args(grader="math_verify"), ["<answer>" * many], [ask("")]) == [0.0]


# -------------------------------------------------------------------------------------------- facts and effects
def test_facts_of_the_world_and_of_a_column():
    sample = open_dataset("world", "test")[0]
    assert re.fullmatch(r"<info1>[a-d][1-4] .*</info1>", visual_facts(sample)) and visual_facts(ask("")) == ""
    assert visual_facts(replace(sample, meta={"visual_key_info": None})) == ""
    with pytest.raises(SightRLError, match="d.jsonl line 3 has no column visual_key_info .*--make-facts"):
        visual_facts(Sample("1", "q", "a", "t", [], where="d.jsonl line 3"))


def test_perceived_counts_answers_that_state_everything(tmp_path):
    args = Args(eval_questions=8)
    parts = {split: open_dataset("world", split).take(8) for split in ("test", "test_combo", "test_counter")}
    records = [{"id": s.id, "split": split, "task": s.task, "responses": [" ".join(tags(visual_facts(s))), "none"],
                "scores": [1.0, 0.0]} for split, part in parts.items() for s in part]  # fmt: skip
    own = perceived(ORACLE, args, Evaluation(records, 2), tmp_path / "own.json")
    assert Evaluation.load(tmp_path / "own.json").records == own.records
    assert all(r["facts"] >= 1 and r["recall"] == r["scores"] == r["right"] == [1.0, 0.0] for r in own.records)
    effects = effects_of(Evaluation(records, 2), own, 4)
    assert effects == {"repetition rate": 0, "fact recall": 0.5, "all facts stated": 0.5,
                       "accuracy with several facts": 0.5}  # fmt: skip
    assert perceived(None, args, Evaluation(records, 2), tmp_path) is None


def test_make_facts_keeps_right_solutions_and_asks_for_what_was_seen(server, tmp_path, capsys):
    rows = [{"problem": f"AB is {n}. How long?", "answer": str(n), "response": f"so \\boxed{{{n - n % 2}}}"}
            for n in (2, 3, 4)]  # fmt: skip
    data = jsonl(tmp_path / "d.jsonl", rows)
    server.script = [completion("Facts:\n<info1> AB has the label x</info1>\n<info2>a right angle</info2>")]
    out, judge = tmp_path / "facts.jsonl", f"{server.url},model=m"
    perception_r1.main(Args(data=data, judge=judge, make_facts=str(out)))
    facts = "<info1> AB has the label x</info1><info2>a right angle</info2>"
    assert read_lines(out) == [rows[0] | {"visual_key_info": facts}, rows[2] | {"visual_key_info": facts}]
    assert "2 of 3 rows" in capsys.readouterr().out and len(server.seen) == 2
    prompt = server.seen[0]["messages"][0]["content"]
    assert "AB is" in prompt and "so \\boxed" in prompt
    (tmp_path / "d.jsonl").write_text('{"problem": "q", "answer": "1"}\n')
    with pytest.raises(SightRLError, match="response"):
        make_facts(judge, data, "", str(out), lambda *pair: [])


# --------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture
def coins(coin_grades, monkeypatch):
    """A random model states nothing either: verdicts on its texts are coins too."""
    real = oracle
    flip = lambda prompt: tagged([str(coin(str(k) + prompt)) for k in range(len(tags(real(prompt))))])  # noqa: E731
    monkeypatch.setattr("common.tasks.facts.oracle", flip)


def small(out: Path, **options) -> Args:
    return Args(**MINUTE | GROUPS | dict(out=str(out)) | options)


@pytest.mark.usefixtures("coins")
def test_two_steps_from_end_to_end(tmp_path, capsys):
    perception_r1.main(small(tmp_path, eval_every=2))
    folder = only_run(tmp_path)
    rows, final = metrics(folder), summary(folder)
    assert all(row["logp_mismatch"] < 1e-4 and row["grad_norm"] > 0 for row in rows)
    assert {"reward/accuracy", "reward/format", "reward/visual", "reward/ngram"} <= set(rows[0])
    assert rows[0]["reward/visual"] > 0 and "val/accuracy" in rows[1]
    assert {"repetition rate", "fact recall", "all facts stated"} <= set(final["effects"])
    assert set(final["own_comparison"]["mcnemar"]) == {"gained", "lost", "p"}
    assert (folder / "own_before.json").exists() and (folder / "own_after.json").exists()
    assert "McNemar's exact p" in capsys.readouterr().out and not (folder / "judge.jsonl").exists()


@pytest.mark.usefixtures("coins")
@pytest.mark.parametrize(
    "options",
    [dict(visual_weight=0.0, ngram_weight=0.0), dict(judge_noise=0.2, kl_coef=0.1, loss_mean="sequence_mean"),
     dict(ngram_size=2, recompute_old_logps=True, mini_batch_prompts=2, loss_mean="token_mean"),
     dict(judge="local:random:qwen2_5_vl", filter_groups="std", max_rounds=2)],
)  # fmt: skip
def test_other_options_run(options, tmp_path):
    perception_r1.main(small(tmp_path, **({"steps": 1, "eval_questions": 0} | options)))
    assert (only_run(tmp_path) / "summary.json").exists()


@pytest.mark.usefixtures("coins")
def test_data_with_a_column_and_a_judge_behind_an_address(server, tmp_path):
    server.script = lambda prompt: [completion("<info1>1</info1><info2>0</info2>")]
    Image.new("RGB", (56, 56), "red").save(tmp_path / "a.png")
    row = {"question": "How long?", "answer": "24", "image": "a.png", "visual_key_info": tagged(["a", "b"])}
    options = dict(data=f"jsonl:{tmp_path}/data,{tmp_path}", judge=f"{server.url},model=m", steps=1, eval_questions=1)
    for name in ("train", "test"):
        write_lines(tmp_path / f"data/{name}.jsonl", [row])
    perception_r1.main(small(tmp_path / "runs", **options))
    folder = only_run(tmp_path / "runs")
    assert metrics(folder)[0]["reward/visual"] == pytest.approx(0.35, abs=1e-5)
    assert summary(folder)["effects"]["fact recall"]["after"] == 0.5
    assert (folder / "judge.jsonl").stat().st_size > 0
    write_lines(tmp_path / "data/train.jsonl", [{k: v for k, v in row.items() if k[0] != "v"}])
    with pytest.raises(SightRLError, match="has no column visual_key_info"):
        perception_r1.main(small(tmp_path / "other", **options))
    perception_r1.main(small(tmp_path / "blind", **options | {"visual_weight": 0.0, "judge": "oracle"}))


@pytest.mark.usefixtures("coins")
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    options = dict(steps=3, judge_noise=0.2)
    killed_and_resumed(perception_r1.main, lambda **more: small(**options | more), tmp_path, step=2)


# ------------------------------------------------------------------------------------------------------ options
def test_published_values_of_the_card():
    args = parse(perception_r1, "--preset", "paper-7b")
    published = dict(
        group_size=8, temperature=1.0, max_new_tokens=4096, prompts_per_step=128, mini_batch_prompts=0, lr=1e-6,
        weight_decay=1e-3, warmup_steps=14, steps=275, min_pixels=3136, max_pixels=1806336, visual_weight=0.7,
        format_weight=0.1, ngram_weight=2.0, ngram_size=20, grader="math_verify", clip_low=0.2, clip_high=0.3,
        dual_clip=3.0, kl_coef=0.0, loss_mean="token_mean_micro", advantage="group_std", advantage_eps=1e-6,
        filter_groups="off", recompute_old_logps=True, train_vision=True, judge_noise=0.0)  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    assert args.judge.startswith("http") and all(word in args.prompt for word in ("<think>", "<answer>", "\\boxed{}"))


@pytest.mark.parametrize(
    ("options", "words"),
    [(dict(judge_noise=2.0), "--judge-noise"), (dict(ngram_size=0), "--ngram-size"), (dict(judge="gpt"), "'gpt'"),
     (dict(group_size=1), "--group-size"), (dict(make_facts="x.jsonl", judge="gpt"), "'gpt'")],
)  # fmt: skip
def test_bad_options_are_one_sentence(options, words, tmp_path):
    with pytest.raises(SightRLError, match=words) as error:
        perception_r1.main(small(tmp_path, **options))
    assert "\n" not in str(error.value)
