"""methods/ssl4rl.py, common/tasks/puzzles.py: golden vectors of the official code, whole runs from the outside."""

from __future__ import annotations

import random
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import close, read_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from method_runs import GROUPS, MINUTE, killed_and_resumed, metrics, only_run, parse, summary
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from common.data import open_dataset
from common.errors import SightRLError
from common.grpo import group_advantages
from common.tasks import puzzles
from common.world.layouts import PROMPTS
from methods import ssl4rl
from methods.ssl4rl import Args, effects_of, puzzles_of, reward

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = MINUTE | GROUPS


@pytest.fixture
def coins(monkeypatch):
    """A random model is never right; a reward that depends on the text alone gives the groups some spread."""
    monkeypatch.setattr(ssl4rl, "reward", lambda text, puzzle: zlib.crc32(text.encode()) // 2 % 3 / 2)


def said(answer: str) -> str:
    return f"<think>so</think> <answer>{answer}</answer>"


def gold(answer: str, task: str = "rotation") -> SimpleNamespace:
    return SimpleNamespace(answer=answer, task=task)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ------------------------------------------------------------ golden vectors (rewards: official code on these texts)
@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [(said("90"), "90", 1), (said("90 degrees"), "90", 0), (said(" positive "), "positive", 1),
     (said("Top-left"), "top-left", 0), ("top-left", "top-left", 0)],
)  # fmt: skip
def test_golden_1_exact_answers(text, answer, expected):
    assert reward(text, gold(answer)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(said("3,2,1,4"), 1), (said("3,1,2,4"), 0.5), (said("3,2"), 0.5), (said("3214"), 0), (said("3,2,1,4,9"), 1),
     (said("a,2,1,4"), 0.75), ("3,2,1,4", 0), (said(" 3 , 02,+1,\n4"), 1), (said("3.0,-2,,4"), 0.25)],
)  # fmt: skip
def test_golden_2_jigsaw_counts_places(text, expected):
    assert reward(text, gold("3,2,1,4", "jigsaw")) == expected


def test_golden_3_size_after_the_crop():
    expected = {0: (200, 120), 45: (84, 84), 90: (119, 200), 180: (199, 119), 270: (119, 199)}
    assert {d: puzzles.largest_rectangle(200, 120, d) for d in expected} == expected
    seen = {}
    for seed in range(40):
        made = puzzles.rotation(noise(200, 120), random.Random(seed), crop=True)
        seen[int(made["answer"])] = made["images"][1].size
    assert seen == {d: size for d, size in expected.items() if d != 45}
    assert all(puzzles.rotation(noise(200, 27), random.Random(seed), crop=True) is None for seed in range(9))


def test_golden_4_jigsaw_convention():
    order = list(range(4))
    random.Random(0).shuffle(order)  # how the official builder gets its order with seed 0
    picture = noise(200, 120)
    parts, answer = puzzles.cut_up(picture, order, 2)
    corners = [(0, 60), (0, 0), (100, 0), (100, 60)]
    assert answer == "2,3,1,4"
    assert all(part == picture.crop((x, y, x + 100, y + 60)) for part, (x, y) in zip(parts, corners, strict=True))


def test_golden_5_position_needs_room():
    assert all(puzzles.position(noise(90, 64), random.Random(seed)) is None for seed in range(9))
    assert puzzles.position(noise(70, 70), random.Random(0))["images"][1].size == (28, 28)


def test_golden_6_advantages():
    rewards = torch.tensor([1, 0.5, 0, 0.25, 0.25])
    expected = torch.tensor([1.582509, 0.263751, -1.055005, -0.395627, -0.395627])
    close(group_advantages(rewards, 5), expected, 1e-5)


# ------------------------------------------------------------------------------------------------- the puzzles
def test_a_turned_picture_is_an_exact_transpose():
    picture, seen = noise(60, 40), set()
    for seed in range(30):
        made = puzzles.rotation(picture, random.Random(seed))
        first, second = (np.asarray(image) for image in made["images"])
        quarters = int(made["answer"]) // 90
        assert np.array_equal(np.rot90(first, quarters), second) and np.array_equal(first, np.asarray(picture))
        seen.add(quarters)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("grid", [2, 3])
def test_the_answer_puts_a_jigsaw_together(grid):
    picture = noise(112, 113)
    made = puzzles.jigsaw(picture, random.Random(grid), grid)
    width, height = 112 // grid, 113 // grid
    numbers = [int(n) - 1 for n in made["answer"].split(",")]
    together = Image.new("RGB", (grid * width, grid * height))
    for place, number in enumerate(numbers):
        together.paste(made["images"][number], (place % grid * width, place // grid * height))
    assert together == picture.crop((0, 0, grid * width, grid * height))
    assert sorted(numbers) == list(range(grid * grid)) and puzzles.jigsaw(noise(5, 2), random.Random(0), 3) is None


def test_a_crop_lies_in_its_quadrant():
    picture, seen = noise(160, 120), set()
    for seed in range(60):
        made = puzzles.position(picture, random.Random(seed))
        (x1, y1, x2, y2), answer = made["box"], made["answer"]
        assert made["images"][1] == picture.crop(made["box"])
        assert 28 <= x2 - x1 <= 64 and 28 <= y2 - y1 <= 48  # at most 80 % of a quadrant
        assert (x2 <= 80) == answer.endswith("left") and (y2 <= 60) == answer.startswith("top")
        assert x2 <= 80 or x1 >= 80
        seen.add(answer)
    assert seen == set(puzzles.QUADRANTS)


def test_views_do_not_tell_by_their_size():
    made = [puzzles.contrastive(noise(300, 90), noise(130, 260), random.Random(seed)) for seed in range(80)]
    assert {image.size for one in made for image in one["images"]} == {(90, 90)}
    assert 25 < sum(one["answer"] == "positive" for one in made) < 55
    plain = [Image.new("RGB", (90, 90), color) for color in ("red", "blue")]
    for seed in range(20):
        one = puzzles.contrastive(*plain, random.Random(seed))
        means = [np.asarray(image).mean((0, 1)).argmax() for image in one["images"]]
        grey = any(np.ptp(np.asarray(image)[0, 0]) == 0 for image in one["images"])
        assert grey or (means[0] == means[1]) == (one["answer"] == "positive")


def world(n: int, first: int = 0) -> list:
    data = open_dataset("world", "train")
    return [data[i] for i in range(first, first + n)]


def test_puzzles_follow_from_the_ids_and_use_no_label():
    samples = world(24)
    made = puzzles_of(Args(ssl="mix"), samples)
    for sample in samples:
        sample.question = sample.answer = "unused"
    again = puzzles_of(Args(ssl="mix"), samples)
    assert [one.images for one in made] == [one.images for one in again] and len(made) == 24
    assert [one.answer for one in made] == [one.answer for one in again]
    assert {one.task for one in made} == set(puzzles.TASKS) and not any(one.meta for one in made)
    assert {one.task for one in puzzles_of(Args(ssl="jigsaw", grid=3), samples)} == {"jigsaw"}


@pytest.mark.parametrize(("leak", "sizes"), [(True, 4), (False, 1)])
def test_only_the_leak_tells_the_angle_by_size(leak, sizes):
    """Sizes in tokens, as the tiny VLM and Qwen2.5-VL see them: one per angle, or one for all."""
    made = puzzles_of(Args(ssl="rotation", size_leak=leak), world(40))
    seen = {(one.answer, smart_resize(image.height, image.width, 28, 3136, 200_704))
            for one in made for image in one.images[1:]}  # fmt: skip
    assert len({answer for answer, _ in seen}) == len(seen) == 4 and len({size for _, size in seen}) == sizes


def test_pictures_that_cannot_be_used_are_left_out():
    small, large, text = (SimpleNamespace(id=name, where=name, images=images, load_images=lambda i=images: i)
                          for name, images in (("s", [noise(60, 60)]), ("l", [noise(90, 90)]), ("t", [])))  # fmt: skip
    assert [one.id for one in puzzles_of(Args(), [small, text, large])] == ["l:position"]
    assert len(puzzles_of(Args(ssl="contrastive"), [small, text, large])) == 2
    for args, samples in ((Args(), [small]), (Args(ssl="contrastive"), [large]), (Args(), [text])):
        with pytest.raises(SightRLError, match="picture for --ssl"):
            puzzles_of(args, samples)


# --------------------------------------------------------------------------------------------------- the reward
def test_only_what_follows_the_last_marker_counts_and_there_the_first_answer():
    chat = "user\nq assistant\n" + said("90")
    assert reward(chat, gold("90")) == 1 and reward(chat + "\nassistant\nno", gold("90")) == 0
    assert reward("assistant" + said("90"), gold("90")) == 1
    assert reward(said("90") + said("180"), gold("90")) == 1 and reward(said("90") + said("180"), gold("180")) == 0
    assert reward("<answer>90", gold("90")) == 0 == reward("</answer>90<answer>", gold("90"))
    assert reward(said("a"), gold("b,a")) == 1 and reward(said("b,a"), gold("b,a")) == 0  # one of several
    assert reward("<answer>1\n</answer>", gold("1")) == 1 and reward(said(""), gold("1")) == 0


PIECES = st.sampled_from(["<answer>", "</answer>", "assistant\n", "assistant", "<think>", "top-left", "9" * 5000, "１",
                          "\x00", "\ud800", *"1234,+0- \n"])  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join)), st.sampled_from(["jigsaw", "position"]))
def test_any_text_gets_a_reward(text, task):
    assert reward(text, gold("3,2,1,4", task)) in (0, 0.25, 0.5, 0.75, 1)


def test_long_texts_earn_nothing_in_linear_time():
    for piece in ("<answer>", "</answer>", "assistant\n", "1,", ",", "0", "<answer>1,"):
        for task in ("jigsaw", "rotation"):
            assert reward(piece * 200_000, gold("3,2,1,4", task)) == 0


# ------------------------------------------------------------------------------------------------- the options
def test_prompt_and_published_values():
    assert PROMPTS["answer"] == ssl4rl.ANSWER_PROMPT and Args().prompt == PROMPTS["boxed"]
    args = parse(ssl4rl, "--preset", "paper-3b")
    published = dict(group_size=5, temperature=1.0, top_p=1.0, max_new_tokens=2048, prompts_per_step=512, lr=1e-6,
                     mini_batch_prompts=128, clip_low=0.2, clip_high=0.2, dual_clip=3.0, kl_coef=0.01, kl_kind="k3",
                     advantage_eps=1e-6, grid=2, steps=300, train_vision=True)  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published
    assert all(tag in args.puzzle_prompt for tag in ("{question}", "<think>", "</think>", "<answer>", "</answer>"))


@pytest.mark.parametrize("options", [dict(grid=1), dict(group_size=1), dict(data="images:x", eval_every=5)])
def test_bad_options(options):
    with pytest.raises(SightRLError, match="^--"):
        ssl4rl.check(Args(**options))


def test_effects_count_what_is_wholly_right():
    def evaluation(*records):
        return SimpleNamespace(records=[{"task": task, "scores": scores} for task, scores in records])

    before = (evaluation(("locate", [1, 0]), ("color", [0, 0]), ("sum", [1, 1])), evaluation(("jigsaw", [0.5, 0.75])))
    after = (evaluation(("locate", [1, 1]), ("color", [0, 1]), ("sum", [0, 0])), evaluation(("jigsaw", [1, 0.5])))
    expected = {"VQA where": (0.5, 1), "VQA what": (0, 0.5), "jigsaw solved": (0, 0.5)}
    assert effects_of(before, after) == expected
    assert effects_of((None, before[1]), (None, after[1])) == {"jigsaw solved": (0, 0.5)}
    assert effects_of((None, None), (None, None)) == {}


# --------------------------------------------------------------------------------------------------- whole runs
def test_two_steps_from_end_to_end(tmp_path, coins, capsys):
    ssl4rl.main(Args(out=str(tmp_path), **SMALL | dict(ssl="mix", prompts_per_step=4)))
    folder = only_run(tmp_path)
    for file in ("eval_before.json", "eval_after.json", "own_before.json", "own_after.json", "report.html"):
        assert (folder / file).stat().st_size > 0
    rows, final = metrics(folder), summary(folder)
    assert [row["step"] for row in rows] == [0, 1] and all(row["logp_mismatch"] < 1e-4 for row in rows)
    assert rows[-1]["tokens_generated"] == sum(row["tokens"] for row in rows)
    assert {"reward/puzzle", "kl", "accuracy", "no_answer"} <= set(rows[0]) and rows[0]["grad_norm"] > 0
    assert "VQA what" in final["effects"] and "own_comparison" in final and "comparison" in final
    record = read_lines(folder / "rollouts.jsonl")[0]
    assert record["task"] in puzzles.TASKS and set(record["rewards"]) == {"puzzle"}


@pytest.mark.parametrize(
    "options",
    [
        dict(ssl="rotation", size_leak=True, recompute_old_logps=True, clip_high=0.28, dual_clip=0.0),
        dict(ssl="jigsaw", grid=3, mini_batch_prompts=2, kl_kind="k1", max_new_tokens=3),
        dict(ssl="contrastive", kl_coef=0.0, micro_tokens=200, eval_every=1, eval_questions=2, eval_k=1),
    ],
)
def test_other_options_run(options, tmp_path, coins):
    ssl4rl.main(Args(out=str(tmp_path), **SMALL | dict(steps=1, eval_questions=0) | options))
    assert (only_run(tmp_path) / "summary.json").exists()


def test_pictures_without_questions(tmp_path, coins, capsys):
    for i in range(30):
        noise(80 + i, 90, i).save(tmp_path / f"{i}.png")
    out = tmp_path / "runs"
    ssl4rl.main(Args(out=str(out), **SMALL | dict(data=f"images:{tmp_path}", steps=1)))
    folder = only_run(out)
    assert (folder / "own_after.json").exists() and not (folder / "eval_after.json").exists()
    assert set(summary(folder)["effects"]) == {"position solved"}
    assert (folder / "report.html").stat().st_size > 0


def test_killed_and_resumed_equals_uninterrupted(tmp_path, coins):
    options = SMALL | dict(steps=3, ssl="mix")
    killed_and_resumed(ssl4rl.main, lambda **more: Args(**options | more), tmp_path, step=2)
