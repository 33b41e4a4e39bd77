"""Fifteen complaints about libraries for visual reinforcement learning: each test fails if SightRL had that bug.

The numbers are those of docs/faq.md, which says in words what is tested here. Every docstring names one of the threads.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import FAMILIES, make_vlm, mixed_prompts, picture, random_responses
from helpers import coin as toss
from helpers import free_port, jsonl, read_lines, write_lines
from method_runs import MINUTE, assert_same_tensors, metrics
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import common.grpo
import common.rollout
import common.training
import run as eval_run
from common import distributed, logprob
from common.data import Sample, Stream, open_dataset
from common.errors import SightRLError
from common.grpo import aggregate, group_advantages, keep_groups, passk_advantages, rloo_advantages
from common.logprob import response_logps
from common.pixels import Pixels
from common.random_vlm import random_parts
from common.rewards import accuracy, iou, parse_state
from common.rollout import Rollout, forced_rollout, rollout
from common.run import Run
from common.symbolic import verified
from common.training import make_prompt, rollout_metrics, rollout_records
from common.vlm import VLM, load_vlm
from methods import grpo, sft, visual_rft

ROOT = Path(__file__).resolve().parent.parent
SMALL = MINUTE | dict(steps=1, eval_questions=0, prompts_per_step=2, group_size=3, checkpoint_every=0,
                      log_rollouts_every=0)  # fmt: skip
LIMIT = 240  # seconds after which processes that wait for each other count as hanging


pytestmark = pytest.mark.usefixtures("one_thread")


def coin(text: str, sample: Sample) -> int:
    """Here a grade depends on the question too: then it shows whether answers stay with theirs."""
    return toss(sample.id + text)


def train(out: Path, name: str = "run", method=grpo, **options) -> Path:
    """A run of minute size in this process; its folder."""
    method.main(method.Args(**(SMALL | dict(out=str(out), run_name=name) | options)))
    return out / name


def picture_rows(folder: Path, count: int, side: int = 56) -> str:
    """--data of a table with a picture of its own for every row."""
    folder.mkdir(exist_ok=True)
    rows = []
    for n in range(count):
        picture(side, side, n).save(folder / f"{n}.png", compress_level=0)
        rows.append({"question": f"Which one is number {n}?", "answer": f"it is {n}", "image": f"{n}.png"})
    return jsonl(folder / "rows.jsonl", rows)


def text_sample(answer: str, kind: str = "text", **meta) -> Sample:
    return Sample("x:1", "?", answer, "task", [], kind, meta)


# ------------------------------------------------------------------------------------------- 1, 2: image placeholders
@pytest.mark.parametrize("family", FAMILIES)
def test_01_prompts_are_never_truncated_and_pixel_limits_have_one_owner(family, tmp_path):
    """Complaint 1, "image features and image tokens do not match" (EasyR1#175): nothing cuts a prompt, and the saved
    model shows pictures in the sizes that it was trained with."""
    side = 32 if family == "qwen3_vl" else 28
    vlm = VLM(*random_parts(family), min_pixels=4 * side**2, max_pixels=48 * side**2)
    prompt = vlm.prompt("word " * 3000 + "<image> or <image>?", [picture(900, 700), picture(40, 150, 1)])
    assert prompt.text.count("word ") == 3000
    assert len(prompt.input_ids) == prompt.position_ids.shape[1] > 15_000
    (features,) = vlm.encode_images([prompt])
    large, small = (np.prod(image.shape[:2]) // side**2 for image in prompt.images)
    assert 32 < large <= 48 and 4 <= small <= 6
    assert len(features.embeds) == int((prompt.input_ids == vlm.image_token_id).sum()) == large + small
    vlm.save(tmp_path)
    again = load_vlm(str(tmp_path))
    assert (again.min_pixels, again.max_pixels) == (4 * side**2, 48 * side**2)
    same = again.prompt("<image> or <image>?", [picture(900, 700), picture(40, 150, 1)])
    assert torch.equal(same.image_grid_thw, prompt.image_grid_thw)


def test_02_placeholders_are_never_sampled_nor_looked_for_in_answers():
    """Complaint 2, the same error off by one at a random step (EasyR1#110): even a model that loves placeholders
    samples none, and an answer that holds one all the same gets no picture."""
    vlm = make_vlm(text={"tie_word_embeddings": False})
    prompts = mixed_prompts(vlm)
    with torch.no_grad():
        hidden, layout = vlm.run_groups(prompts, vlm.encode_images(prompts))
        loved = hidden[layout.prompts.offsets[1:].long() - 1].mean(0)
        vlm.base.lm_head.weight[vlm.banned_ids] = 50 * loved
    marks = {vlm.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    assert marks <= set(vlm.banned_ids.tolist())
    for temperature in (0.0, 1.0, 5.0):
        out = rollout(vlm, prompts, 4, max_new_tokens=12, temperature=temperature)
        assert not marks & set(out.tokens.flatten().tolist())
    all_ids = torch.arange(len(vlm.head_weight))
    state = hidden[-1:].expand(len(all_ids), -1).contiguous()
    chances = logprob.token_logps(state, vlm.head_weight, all_ids, vlm.banned_ids)[0].exp()
    assert float(chances.detach().sum()) == pytest.approx(1.0, abs=1e-5) and not chances[vlm.banned_ids].any()
    tokens, mask = random_responses(vlm, [5, 5, 5])
    tokens[:, 1] = vlm.image_token_id
    logps, _ = response_logps(vlm, prompts, tokens, mask)  # no mismatch of tokens and features
    assert logps[:, 2:].isfinite().all()


def test_02_labels_with_placeholders_are_refused(tmp_path):
    """Complaint 2 in supervised tokens (verl#3469): a token of probability 0 has a loss of 1e30."""
    vlm = make_vlm()
    with pytest.raises(SightRLError, match=r"<\|image_pad\|>, a mark of pictures"):
        forced_rollout(vlm, mixed_prompts(vlm)[1:2], ["it is <|image_pad|>"])
    for column in ("question", "answer", "response"):
        row = {"question": "a?", "answer": "b", "response": "c"} | {column: "it is <|video_pad|>"}
        (tmp_path / "rows.jsonl").write_text(json.dumps(row))
        with pytest.raises(SightRLError, match=rf"rows.jsonl line 1: the {column} holds <\|video_pad\|>"):
            open_dataset(f"jsonl:{tmp_path}/rows.jsonl", "train")


# ----------------------------------------------------------------------------------- 3, 4: log-probs and positions
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8), (1.7, 0.95)])
def test_03_rollout_and_trainer_have_the_same_log_probabilities(temperature, top_p):
    """Complaint 3 (trl#6789, mean ratio 0.895 at top-p 0.8; trl#4159 temperature; trl#4772 long answers): the ratio of
    the first update is 1 on every token, far into the answer too."""
    vlm = make_vlm()
    prompts = mixed_prompts(vlm)
    generator = torch.Generator().manual_seed(0)
    out = rollout(vlm, prompts, 3, max_new_tokens=160, temperature=temperature, top_p=top_p, generator=generator)
    assert int(out.mask.sum(1).max()) == 160
    with torch.no_grad():
        logps, _ = response_logps(vlm, prompts, out.tokens, out.mask, temperature=temperature)
        other, _ = response_logps(vlm, prompts, out.tokens, out.mask, temperature=temperature * 1.01)
    difference = (logps - out.logps)[out.mask]
    assert difference.abs().max() < 1e-4 and abs(float(difference.exp().mean()) - 1) < 1e-5
    assert (other - out.logps)[out.mask].abs().max() > 1e-3  # the test would notice one per cent of temperature


@pytest.mark.parametrize("family", FAMILIES)
def test_04_positions_of_pictures_are_those_of_the_library_everywhere(family, monkeypatch):
    """Complaint 4, silent wrong positions (trl#5277; trl#5785 padding; AReaL#217 packing): what the language model is
    given in prefill, decoding and scoring equals the library's own positions, and is not one-dimensional."""
    vlm = make_vlm(family)
    prompts, (tokens, mask) = mixed_prompts(vlm), random_responses(vlm, [6, 4, 5])
    given, starts, plain = [], [], common.rollout.Decoder.__init__

    def decoder(self, *args):
        starts.append(args[3])
        plain(self, *args)

    hook = vlm.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["position_ids"][:, 0]), with_kwargs=True)  # fmt: skip
    monkeypatch.setattr(common.rollout.Decoder, "__init__", decoder)
    rollout(vlm, prompts, 1, max_new_tokens=2)
    response_logps(vlm, prompts, tokens, mask)
    hook.remove()
    prefill, scoring = given
    for side in ("left", "right"):  # the library on padded rows, one per prompt
        rows = [torch.cat([p.input_ids, row[keep][:-1]]) for p, row, keep in zip(prompts, tokens, mask, strict=True)]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=vlm.pad_id, padding_side=side)
        seen = pad([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        grids = torch.cat([p.image_grid_thw for p in prompts if p.images])
        expected, _ = vlm.base.model.get_rope_index(
            ids, mm_token_type_ids=(ids == vlm.image_token_id).int(), image_grid_thw=grids, attention_mask=seen
        )
        real = [expected[:, n, seen[n].bool()] for n in range(len(rows))]  # [3, P + R - 1] each
        lengths = [len(p.input_ids) for p in prompts]
        prompt_parts = torch.cat([part[:, :n] for part, n in zip(real, lengths, strict=True)], dim=1)
        answer_parts = torch.cat([part[:, n:] for part, n in zip(real, lengths, strict=True)], dim=1)
        first = [int(part[0, n]) for part, n in zip(real, lengths, strict=True)]
        assert torch.equal(prefill, prompt_parts)
        assert torch.equal(scoring, torch.cat([prompt_parts, answer_parts], dim=1))
        assert starts[0].tolist() == first
    assert first[0] < len(prompts[0].input_ids) and first[1] == len(prompts[1].input_ids)  # a picture takes less room
    assert (prefill[0] != prefill[1]).any() and (prefill[1] != prefill[2]).any()  # time, height and width differ


# ------------------------------------------------------------------------------------------------- 5: several processes
def in_two_processes(job) -> list[int]:
    """job() in two forks that torchrun might have started; their exit codes. A pair that hangs is ended with -9."""
    common_words = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common_words |= {"MASTER_PORT": str(free_port())}
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.environ.update(common_words, RANK=str(rank), LOCAL_RANK=str(rank))
                job()
                distributed.finish()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes, deadline = {}, time.monotonic() + LIMIT
    while len(codes) < 2:
        if time.monotonic() > deadline:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        for pid in set(children) - codes.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    return [codes[pid] for pid in children]


@pytest.mark.parametrize("train_vision", [True, False])
def test_05_processes_with_other_modalities_do_not_wait_for_each_other(train_vision, tmp_path, monkeypatch):
    """Complaint 5, hanging when ranks see different modalities (ms-swift#3213): one process has the picture, the other
    the text, in decoding, scoring and update; the run equals that of one process."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    picture(84, 84).save(tmp_path / "a.png")
    rows = [{"question": "What is it?", "answer": "a", "image": "a.png"}, {"question": "Say something.", "answer": "b"}]
    options = dict(data=jsonl(tmp_path / "rows.jsonl", rows), steps=2, kl_coef=0.1, recompute_old_logps=True,
                   micro_tokens=1, lr=2e-5, train_vision=train_vision)  # fmt: skip
    plain = VLM.run_vision

    def noted(self, images):
        if torch.is_grad_enabled():  # in the update
            (tmp_path / f"process {distributed.rank()}").touch()
        return plain(self, images)

    monkeypatch.setattr(VLM, "run_vision", noted)
    assert in_two_processes(lambda: train(tmp_path, "two", **options)) == [0, 0]
    assert [path.name for path in tmp_path.glob("process *")] == ["process 0"]  # the other one had text alone
    one, two = train(tmp_path, "one", **options), tmp_path / "two"
    for row, other in zip(metrics(one), metrics(two), strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)
    assert_same_tensors(one / "model", two / "model", tolerance=1e-5)


# ---------------------------------------------------------------------------------------- 6: groups without spread
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_06_equal_rewards_give_no_advantage_and_no_nan(eps):
    """Complaint 6, groups with identical rewards (trl#3708; OpenRLHF PR 1272 continuous rewards; NeMo-RL PR 4158
    leave-one-out)."""
    flat, mixed = torch.full((4,), 0.2), torch.tensor([1.0, 0.0, 0.25, 0.0])
    for rewards in (flat, torch.zeros(4), torch.full((4,), 1 / 3)):
        for scale in ("group", "batch", "none"):
            assert group_advantages(rewards, 4, scale, eps).tolist() == [0.0] * 4
        assert rloo_advantages(rewards, 4).tolist() == [0.0] * 4
        assert passk_advantages(rewards, 4, eps).tolist() == [0.0] * 4
    both = torch.cat([flat, mixed])
    assert group_advantages(both, 4, eps=eps)[4:].equal(group_advantages(mixed, 4, eps=eps))
    assert torch.allclose(rloo_advantages(mixed, 4)[0], mixed[0] - mixed[1:].mean())  # the others' mean
    for rule in ("mean", "std"):
        assert keep_groups(torch.cat([torch.full((4,), 0.5), mixed]), 4, rule).tolist() == [False, True]


def test_06_flat_groups_cost_no_update_and_keep_the_denominator(tmp_path, monkeypatch):
    """Complaint 6, wasted compute and a changed batch size (verl PR 5228): a flat group is left out of forward and
    backward, but still counts in the average."""
    monkeypatch.setattr("common.rewards.accuracy", lambda text, s: coin(text, s) if s.id.endswith(":1") else 1)
    counted, scored, plain = [], [], common.grpo.aggregate

    def spy(losses, mask, *args, tokens, **more):
        counted.append(tokens)
        scored.append(int(mask.sum()))
        return plain(losses, mask, *args, tokens=tokens, **more)

    monkeypatch.setattr(common.grpo, "aggregate", spy)
    folder = train(tmp_path, data=picture_rows(tmp_path / "data", 2), group_size=6)
    (row,) = metrics(folder)
    assert row["groups/zero_spread"] == 0.5 and len(counted) == 1
    assert counted[0] == row["tokens"] > scored[0]  # both groups in the denominator, one in the forward pass
    assert all(value is not None for value in row.values())


def test_06_nothing_to_learn_ends_and_leaves_the_weights_alone(tmp_path, monkeypatch, capsys):
    """Complaint 6, endless resampling (trl#3708): rounds are capped, a step without spread changes nothing."""
    monkeypatch.setattr("common.rewards.accuracy", lambda text, sample: 1)
    rounds, plain = [], common.rollout.rollout
    monkeypatch.setattr(common.rollout, "rollout", lambda *args, **more: rounds.append(1) or plain(*args, **more))
    (last,) = metrics(train(tmp_path, "filtered", filter_groups="mean", max_rounds=3, steps=2))
    assert len(rounds) == 3 and "nothing left to learn" in capsys.readouterr().out
    assert last["groups/used"] == 0 and last["tokens_generated"] == last["tokens"] > 0  # a comparison reads it
    folder = train(tmp_path, "unfiltered", steps=2)
    assert [row["groups/zero_spread"] for row in metrics(folder)] == [1, 1]
    assert all(value is not None for row in metrics(folder) for value in row.values())
    load_vlm(SMALL["model"]).save(tmp_path / "start/model")
    assert_same_tensors(folder / "model", tmp_path / "start/model")


# --------------------------------------------------------------------------------------------------- 7, 8: memory
class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returned, in forward and backward passes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.numel())
        return out


def test_07_logits_of_all_tokens_never_exist(monkeypatch):
    """Complaint 7, logits dominate the memory (trl#3678): no tensor of rows x vocabulary in scoring, its backward
    pass or the prefill; sampling has the newest token of every row."""
    monkeypatch.setitem(logprob.CHUNK_ELEMENTS, "cpu", 1 << 16)
    monkeypatch.setattr(logprob, "KEEP_ELEMENTS", 0)
    vlm = make_vlm(text={"vocab_size": 8192})
    prompts = mixed_prompts(vlm)
    tokens, mask = random_responses(vlm, [40] * 6)
    parameters = max(p.numel() for p in vlm.model.parameters())
    with Largest() as scoring:
        response_logps(vlm, prompts, tokens, mask)[0].sum().backward()
    assert scoring.numbers <= parameters < 240 * 8192 / 2
    with Largest() as sampling:
        rollout(vlm, prompts, 2, max_new_tokens=3)
    assert sampling.numbers <= parameters < sum(len(p.input_ids) for p in prompts) * 8192 / 2


def test_07_memory_is_predicted_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    """Complaint 7, out of memory at the first step (VLM-R1#77): --dry-run says what each GPU needs, and what for."""
    monkeypatch.setattr("common.training.load_model", lambda *args, **more: pytest.fail("weights were loaded"))

    def predicted(**options) -> float:
        train(tmp_path, model="tiny", dry_run=True, **options)
        found = re.search(r"memory per GPU\s*[│|]?\s*about ([\d,.]+) GB", text := capsys.readouterr().out)
        assert "memory: activations" in text and "keys and values while sampling" in text
        return float(found[1])

    options = dict(prompts_per_step=64, group_size=8, max_new_tokens=512)
    assert predicted(micro_tokens=65_536, **options) > 1.5 * predicted(micro_tokens=16_384, **options)
    assert list(tmp_path.iterdir()) == []


def resident() -> float:
    """Memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_08_host_memory_does_not_grow_over_fifty_steps(tmp_path, monkeypatch):
    """Complaint 8, steady growth of host memory (verl#4995): every step has three new pictures, whose patches are
    3.6 MB; kept, they would be 130 MB in the end."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    sizes, plain = [], Run.log
    monkeypatch.setattr(Run, "log", lambda self, *args: sizes.append(resident()) or plain(self, *args))
    data = picture_rows(tmp_path / "data", 180, side=224)
    train(tmp_path, data=data, steps=50, prompts_per_step=3, group_size=2, max_new_tokens=2, train_vision=False)
    assert len(sizes) == 50 and max(sizes[-5:]) - max(sizes[10:15]) < 60, sizes


def test_08_pixels_exist_once_per_distinct_picture(monkeypatch):
    """Complaint 8, pixels stored twice per sample (verl#3236): neither answers nor prompts multiply them."""
    made, plain = [], Pixels.patchify
    monkeypatch.setattr(Pixels, "patchify", lambda self, images: made.append(len(images)) or plain(self, images))
    vlm = make_vlm()
    same = [vlm.prompt(text, [picture(112, 112)]) for text in "abcd"]
    out = rollout(vlm, same, 8, max_new_tokens=2)
    response_logps(vlm, same, out.tokens, out.mask)
    assert made == [1] and len(out.prompts) == 4  # four prompts, 32 answers, two passes


# -------------------------------------------------------------------------------------------------------- 9: speed
@pytest.mark.parametrize(("train_vision", "passes"), [(True, 2), (False, 1)])
def test_09_pictures_and_prompts_are_paid_for_once_per_group(train_vision, passes, tmp_path, monkeypatch):
    """Complaint 9, too slow (VLM-R1#77; ms-swift#5263 asks for a cache of vision features): in a step of two groups of
    six, prompts are made once, pictures encoded once a pass, and prompt tokens run once per group."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    prompts, pictures, tokens = [], [], []
    prompt, vision, groups = VLM.prompt, VLM.run_vision, VLM.run_groups
    monkeypatch.setattr(VLM, "prompt", lambda self, *args: prompts.append(prompt(self, *args)) or prompts[-1])
    monkeypatch.setattr(VLM, "run_vision", lambda self, images: pictures.append(len(images)) or vision(self, images))

    def run_groups(self, *args, **more):
        hidden, layout = groups(self, *args, **more)
        tokens.append(len(hidden))
        return hidden, layout

    monkeypatch.setattr(VLM, "run_groups", run_groups)
    folder = train(tmp_path, data=picture_rows(tmp_path / "data", 2), group_size=6, train_vision=train_vision)
    (row,) = metrics(folder)
    assert row["groups/zero_spread"] == 0 and len(prompts) == 2
    assert pictures == [2] * passes  # rollout and update; a frozen tower in the rollout alone
    once = sum(len(p.input_ids) for p in prompts)
    assert tokens == [once, once + row["tokens"] - 12]  # the last token of an answer predicts nothing


# -------------------------------------------------------------------------------------------- 10: batches of several
def test_10_permuting_prompts_permutes_everything(monkeypatch):
    """Complaint 10, pictures and rewards shifted against prompts (R1-V#146): features, answers, log-probs, grades and
    records move with their prompts."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    vlm, order, G = make_vlm(), [2, 0, 3, 1], 3
    asked = [Sample(f"s:{n}", f"number {n}?", str(n), "task", [picture(56, 56 + 28 * n, n)]) for n in range(4)]
    numbers = torch.rand(4 * G, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = torch.tensor([n * G + j for n in order for j in range(G)])
    args = grpo.Args(group_size=G)
    found = []
    for samples, uniform in ((asked, numbers), ([asked[n] for n in order], numbers[rows])):
        prompts = [make_prompt(vlm, sample, "{question}") for sample in samples]
        batch = rollout(vlm, prompts, G, max_new_tokens=8, uniform=uniform)
        logps, _ = response_logps(vlm, prompts, batch.tokens, batch.mask, max_tokens=60)
        right, terms = grpo.score(args, batch, samples)
        advantages = group_advantages(right, G)
        records = [r for g in range(4) for r in rollout_records(vlm, batch, samples, terms, advantages, group=g)]
        embeds = [features.embeds for features in vlm.encode_images(prompts)]
        found.append((batch, logps.detach(), right, advantages, records, embeds))
    (a, logps, right, advantages, records, embeds), (b, *moved) = found
    assert [a.texts[n] for n in rows] == b.texts and len(set(a.texts)) == len(a.texts)
    width = logps.shape[1]
    assert torch.allclose(logps[rows], moved[0][:, :width], atol=1e-5) and (logps[0] != logps[1]).any()
    assert torch.equal(right[rows], moved[1]) and 0 < right.mean() < 1
    assert torch.equal(advantages[rows], moved[2])
    for n, record in zip(rows.tolist(), moved[3], strict=True):
        for name in ("sample_id", "response", "rewards", "advantage", "answer"):
            assert record[name] == records[n][name]
        assert np.array_equal(record["images"][0], records[n]["images"][0])
    for n, embed in zip(order, moved[4], strict=True):
        assert torch.allclose(embeds[n], embed, atol=1e-5)


def test_10_dynamic_sampling_keeps_rows_together(tmp_path, monkeypatch):
    """Complaint 10 (R1-V PR 54; SpaceR#25, only the first sample used): after rounds are joined and groups thrown out,
    every logged answer has the reward and the picture of its own question, and a later group is the one shown."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    one = common.training.rollout_records
    monkeypatch.setattr(common.training, "rollout_records", lambda *args: [r for g in range(3) for r in one(*args, g)])
    data = picture_rows(tmp_path / "data", 8, side=112)
    folder = train(tmp_path, data=data, filter_groups="std", gen_prompts=2, max_rounds=9, prompts_per_step=3,
                   group_size=2, log_rollouts_every=1, steps=2)  # fmt: skip
    records = read_lines(folder / "rollouts.jsonl")
    assert len(records) == 12 and len({record["sample_id"] for record in records}) > 3
    for record in records:
        number = int(record["sample_id"].split(":")[1]) - 1
        right = coin(record["response"], replace(text_sample(""), id=record["sample_id"]))
        assert record["rewards"] == {"accuracy": right} and (record["advantage"] > 0) == right
        assert record["answer"] == f"it is {number}"
        (name,) = record["images"]
        assert np.array_equal(Image.open(folder / name), Image.open(tmp_path / f"data/{number}.png").convert("RGB"))


# --------------------------------------------------------------------------------------------------- 11: rewards
def test_11_right_answers_are_right_in_any_thread():
    """Complaint 11, correct answers score 0 because time limits raise in threads (verl PR 5635): neither grader depends
    on the thread, and the rules need no time limit at all."""
    found = []

    def grade() -> None:
        found.append(accuracy(r"\boxed{\frac{1}{2}}", text_sample("0.5")))
        found.extend(verified(["0.5", "7"], [r"\boxed{\frac{1}{2}}", r"\boxed{8}"], seconds=float(LIMIT)))

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert found == [1.0, 1.0, 0.0]
    source = inspect.getsource(inspect.getmodule(accuracy)) + (ROOT / "common/maths.py").read_text()
    assert not re.search(r"\b(signal|alarm|timeout|Timeout)\b", source)


SAID = ["", "no box", "<think>", r"\boxed{}", r"\boxed{ }", r"\boxed{red", r"\boxed{[]}", r"\boxed{A}"]
UNREADABLE = {"text": ["", "   "], "number": ["", "{"], "option": ["nothing of these", "Z", ""], "yesno": ["maybe", ""],
              "box": ["[1, 2, 3]", "", "somewhere", "[5, 5, 1, 1]"], "boxes": ["[1, 2", "{", "", "none"]}  # fmt: skip


@pytest.mark.parametrize("kind", UNREADABLE)
def test_11_a_gold_answer_that_cannot_be_read_pays_nobody(kind):
    """Complaint 11, unparsable gold scores 1 (cookbook#335)."""
    for gold in [*UNREADABLE[kind], "None"]:
        asked = text_sample(gold, kind, choices=["red", "blue"])
        for response in SAID:
            assert accuracy(response, asked) == 0.0, (gold, response)


def test_11_unfinished_thinking_earns_nothing():
    """Complaint 11, unfinished thinking still rewarded (verifiers PR 213)."""
    for text in (r"<think>perhaps \boxed{3}, no", r"<think>a</think> wait <think>\boxed{3}", r"< think >\boxed{3}"):
        assert accuracy(text, text_sample("3")) == 0.0
    assert parse_state(r"<think>perhaps \boxed{3}, no") == "unclosed"
    for text in (r"<think>perhaps 4</think> \boxed{3}", r"\boxed{3}", r"the mind's end </think> \boxed{3}"):
        assert accuracy(text, text_sample("3")) == 1.0 and parse_state(text) == "ok"
    assert accuracy("<think>nothing", text_sample("None")) == 0.0  # VPPO's grader pays this one
    assert accuracy(r"\boxed{None}", text_sample("None")) == 1.0


def test_11_listing_everything_does_not_earn_the_full_reward():
    """Complaint 11 in Visual-RFT's rewards (Visual-RFT#79): neither all classes, nor no class, nor boxes all over the
    picture, nor two corners of everything."""

    def earned(kind: str, gold: str, answer: str) -> dict[str, float]:
        asked = Sample("x:1", "?", gold, kind, [])
        return visual_rft.rewards_of(visual_rft.Args(), f"<think>so</think><answer>{answer}</answer>", asked)

    names = ["red circle", "blue circle", "green square"]
    for answer in (", ".join(names), " ".join(names), "", " ", "circle", "red", "red circle or blue circle"):
        assert earned("classify", "red circle", answer)["classify"] == 0.0, answer
    for answer in ("red circle", "Red_Circle", "REDCIRCLE"):
        assert earned("classify", "red circle", answer)["classify"] == 1.0
    entry = "{{'Position': [{}, {}, {}, {}], 'Confidence': {}}}"
    gold = "[" + entry.format(0, 0, 50, 50, 1.0) + "]"
    best = earned("detect", gold, gold)
    grid = [(x, y, x + 50, y + 50) for x in range(0, 250, 50) for y in range(0, 250, 50)]
    for confidence in (1.0, 0.5, 0.0):
        spray = earned("detect", gold, "[" + ", ".join(entry.format(*box, confidence) for box in grid) + "]")
        assert spray["iou"] == pytest.approx(1 / 25)
        assert spray["iou"] + spray["confidence"] < 0.55 * (best["iou"] + best["confidence"])
    assert earned("detect", "No Objects", gold) | {"format": 1.0} == {"iou": 0.0, "confidence": 0.0, "format": 1.0}
    everywhere = earned("ground", "(0,0),(50,50)", ", ".join(f"({a},{b}),({c},{d})" for a, b, c, d in grid[::-1]))
    assert everywhere["ground"] < 1 < earned("ground", "(0,0),(50,50)", "(0,0),(50,50)")["ground"]


def test_11_rates_of_right_wrong_and_unreadable_are_logged():
    """Complaint 11, a reward stuck at 0 without a reason (open-r1#255): three rates tell, and add up to 1."""
    vlm = make_vlm()
    texts = [r"\boxed{1}", r"\boxed{2}", "I do not", r"<think>\boxed{1}", r"\boxed{}", r"\boxed{7}"]
    ids = [vlm.answer_ids(text) for text in texts]
    mask = torch.arange(30) < torch.tensor([len(row) for row in ids])[:, None]
    cut = torch.tensor([False, False, True, True, False, False])
    batch = Rollout([], 3, torch.zeros(6, 30), mask, torch.zeros(6, 30), cut, texts, None)
    samples = [text_sample("1"), text_sample("7")]
    right = torch.tensor([accuracy(text, samples[n // 3]) for n, text in enumerate(texts)])
    found = rollout_metrics(batch, samples, right, {"accuracy": right})
    rates = [found[name] for name in ("accuracy", "wrong_answer", "no_answer")]
    assert rates == pytest.approx([2 / 6, 1 / 6, 3 / 6]) and found["truncated"] == pytest.approx(2 / 6)
    assert found["length/correct"] == len(ids[0])
    assert found["length/wrong"] == np.mean([len(ids[n]) for n in (1, 2, 3, 4)])


def test_11_answers_cut_by_the_length_limit_are_said(tmp_path, capsys):
    """Complaint 11, answers cut by the length cap give all-zero rewards (autocontext PR 1067): the run says so."""
    folder = train(tmp_path, steps=2, max_new_tokens=4)
    assert all(row["truncated"] > 0.5 and row["reward/mean"] == 0 for row in metrics(folder))
    said = capsys.readouterr().out
    assert said.count("cut off before they ended; raise --max-new-tokens") == 1


# -------------------------------------------------------------------------------------------------- 12: frames of boxes
WIDTH, HEIGHT, BOX = 900, 300, (600, 150, 800, 250)


def coco(folder: Path) -> str:
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(folder / "a.png")
    x1, y1, x2, y2 = BOX
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    data = {"images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}], "annotations": [box],
            "categories": [{"id": 1, "name": "cup"}]}  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(data))
    return f"coco:{folder}/coco.json,{folder}"


@pytest.mark.parametrize("family", FAMILIES)
def test_12_boxes_are_graded_in_the_frame_of_the_model(family, tmp_path):
    """Complaint 12, IoU always near zero (VLM-R1#44; Qwen3-VL#1486): Qwen2.5-VL writes pixels of the resized picture,
    Qwen2-VL and Qwen3-VL 0 to 1000; the picture is not square, and the resize changes its shape."""
    vlm = VLM(*random_parts(family), max_pixels=100_000)
    height, width = vlm.pixels.resize(Image.new("RGB", (WIDTH, HEIGHT))).shape[:2]
    assert 2 * height < width < WIDTH and width / height != WIDTH / HEIGHT
    size = (width, height) if family == "qwen2_5_vl" else (1000, 1000)
    said = [round(v * size[i % 2] / (WIDTH, HEIGHT)[i % 2]) for i, v in enumerate(BOX)]
    assert iou(BOX, said) < 0.2
    data = {s.task: s for s in open_dataset(coco(tmp_path), "train").samples}
    answers = {"locate": lambda box: str(list(box)),
               "detect": lambda box: json.dumps([{"bbox_2d": list(box), "label": "cup"}])}  # fmt: skip
    for task, write in answers.items():
        sample = data[task]
        prompt = make_prompt(vlm, sample, "{question}")
        make_prompt(vlm, sample, "{question}")  # once more, in the next epoch
        assert accuracy(f"\\boxed{{{write(said)}}}", sample) == 1.0
        assert accuracy(f"\\boxed{{{write(BOX)}}}", sample) == 0.0
        assert ("from 0 to 1000" in prompt.text) == (size == (1000, 1000)) != ("in pixels" in prompt.text)
        learned = sft.target(sample, "careful")  # what supervised training is shown
        assert accuracy(learned, sample) == 1.0 and str(list(said)) in learned
    asked = visual_rft_question(vlm, data["detect"])
    assert visual_rft.rewards_of(visual_rft.Args(), f"<answer>{asked.answer}</answer>", asked)["iou"] == 1.0
    assert str(list(said)) in asked.answer


def visual_rft_question(vlm: VLM, sample: Sample) -> Sample:
    from common.tasks.perception import perception_question

    return perception_question(sample, "detect", "{question}", vlm.pixels if vlm.family == "qwen2_5_vl" else None)


def test_12_rows_may_say_their_frame_and_the_micro_world_is_left_alone(tmp_path):
    """Complaint 12, ambiguous reference size (VLM-R1#198): a table with boxes from 0 to 1000 says so."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    row = {"question": "Give the box.", "answer": "[500, 200, 700, 400]", "image": "a.png", "box_frame": [1000, 1000]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    for family, answer in (("qwen3_vl", row["answer"]), ("qwen2_5_vl", "[266, 34, 372, 67]")):  # of 532 x 168
        vlm = VLM(*random_parts(family), max_pixels=100_000)
        (sample,) = open_dataset(f"jsonl:{tmp_path}/rows.jsonl", "train").samples
        make_prompt(vlm, sample, "{question}")
        assert sample.answer_type == "box" and sample.answer == answer
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"box_frame": 1000}))
    with pytest.raises(SightRLError, match=r"line 1 has the box_frame .*write \[width, height\]"):
        open_dataset(f"jsonl:{tmp_path}/rows.jsonl", "train")
    sample = next(s for s in open_dataset("world", "train", tasks="locate").take(1))
    before = replace(sample)
    make_prompt(vlm, sample, "{question}")
    assert sample == before


# ------------------------------------------------------------------------------------------------------- 13: resume
def test_13_resume_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Complaint 13, resume starts at step one or sees batches again (trl#3179): steps, questions, learning rate,
    optimiser, generators and weights go on as if nothing had happened."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    seen, plain = [], Stream.next

    def noted(self, n):
        batch = plain(self, n)
        seen.append([sample.id for sample in batch])
        return batch

    monkeypatch.setattr(Stream, "next", noted)
    data = picture_rows(tmp_path / "data", 7)  # an epoch ends within a batch
    options = dict(data=data, warmup_steps=4, checkpoint_every=1, keep_checkpoints=9)
    whole = train(tmp_path, "whole", steps=4, **options)
    asked, seen[:] = list(seen), []
    train(tmp_path, "cut", steps=2, **options)
    random_weights = torch.rand(9)  # whatever happens between the two sittings
    cut = train(tmp_path, "cut", steps=4, **options, resume=str(tmp_path / "cut"))
    assert seen == asked and len({tuple(batch) for batch in asked}) == 4 and len(random_weights) == 9
    assert metrics(cut) == metrics(whole)
    assert [row["step"] for row in metrics(cut)] == [0, 1, 2, 3]
    assert [row["lr"] for row in metrics(cut)] == pytest.approx([2.5e-5, 5e-5, 7.5e-5, 1e-4])
    assert_same_tensors(cut / "checkpoints/step-00000003", whole / "checkpoints/step-00000003")
    moments = load_file(cut / "checkpoints/step-00000003/optimizer.safetensors")
    assert {float(value) for name, value in moments.items() if name.endswith(".step")} == {4.0}
    kept = json.loads((cut / "checkpoints/step-00000003/state.json").read_text())
    names = dict(kept["state"]["dict"])
    assert {"step", "random", "generator", "rng", "stateful", "positions"} <= names.keys()
    assert {"stream", "budget"} == dict(names["stateful"]["dict"]).keys()


def test_13_the_last_step_is_always_saved(tmp_path, monkeypatch):
    """Complaint 13, saving asked for when the run was over (cleanrl#110): model and checkpoint are there without any
    option, and a finished run goes on."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    folder = train(tmp_path, steps=1, checkpoint_every=50)
    assert (folder / "checkpoints/latest").read_text() == "step-00000000\n"
    assert list((folder / "model").glob("*.safetensors"))
    train(tmp_path, steps=2, checkpoint_every=50, resume=str(folder))
    assert [row["step"] for row in metrics(folder)] == [0, 1]


# ---------------------------------------------------------------------------------------------------- 14: evaluation
def evaluate(*words: str) -> None:
    eval_run.main(eval_run.parse([*words]))


def test_14_a_held_out_score_can_be_traced_and_computed_again(tmp_path, capsys):
    """Complaint 14, 60.7, 63.8 or 68 for the same model (Curr_REFT#1): settings, versions and every answer lie
    beside the score, asking again gives the same answers, and grading them again the same score."""
    found = []
    for out in ("a", "b"):
        evaluate("--model", "random:qwen2_5_vl", "--benchmarks", "world", "--limit", "2", "--k", "2",
                 "--max-new-tokens", "5", "--out", str(tmp_path / out))  # fmt: skip
        (folder,) = (tmp_path / out).iterdir()
        found.append(json.loads((folder / "eval.json").read_text()))
    assert found[0] == found[1]
    settings, records = found[0]["settings"], found[0]["records"]
    assert {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5, "seed": 0}.items() <= settings.items()
    assert "{question}" in settings["prompt"] and settings["versions"]["transformers"] and settings["max_pixels"] > 0
    assert {"git_commit", "git_dirty", "model", "benchmark", "dtype"} <= settings.keys()
    splits = ("test", "test_combo", "test_counter")
    samples = {sample.id: sample for split in splits for sample in open_dataset("world", split).take(2)}
    assert len(records) == 6
    for record in records:
        assert [accuracy(text, samples[record["id"]]) for text in record["responses"]] == record["scores"]
    right = f"\\boxed{{{records[0]['answer']}}}"
    assert accuracy(right, samples[records[0]["id"]]) == 1.0  # the stored gold answer is the one that was graded


BENCHMARK = """
from benchmark import Benchmark, Result
BENCHMARKS = {"own": Benchmark(
    title="Own", source="hf:nobody/own", split="test", size=3, metric="accuracy", licence="CC0",
    columns=("question", "answer"), prompt=lambda row, scoring: "Short: " + row["question"], images=lambda row: [],
    score=lambda row, response, scoring: Result(float(len(response) % 2), response), max_new_tokens=6)}
"""


def test_14_benchmark_answers_keep_their_prompt_and_score_the_same_again(tmp_path, monkeypatch, capsys):
    """Complaint 14, an unclear prompt variant (VLMEvalKit#869) and a number that one setting moves from 0.46 to 21.68
    (lmms-eval PR 660): the very prompt stands with each answer, and scoring the stored file gives the same table."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(BENCHMARK)
    write_lines(Path("rows.jsonl"), [{"question": f"{n}?", "answer": "1"} for n in range(3)])
    evaluate("--model", "random:qwen2_5_vl", "--benchmarks", "own.py", "--data", "rows.jsonl", "--out", "out",
             "--run-name", "x", "--temperature", "1", "--k", "2", "--prompt", "Look. {question}")  # fmt: skip
    found = json.loads(Path("out/x/own/results.json").read_text())
    answers = read_lines(Path("out/x/own/predictions.jsonl"))
    assert [answer["prompt"].count(f"Look. Short: {n}?<|im_end|>") for n, answer in enumerate(answers)] == [1] * 3
    needed = {"temperature", "top_p", "seed", "max_new_tokens", "prompt", "system", "prompt_hash", "scorer_hash",
              "rows_hash", "min_pixels", "max_pixels", "dtype", "batch"}  # fmt: skip
    assert needed <= found["settings"].keys() and {"torch", "transformers", "python"} <= found["versions"].keys()
    assert found["scores"] == {answer["id"]: [len(text) % 2 for text in answer["responses"]] for answer in answers}
    evaluate("--predictions", "out/x/own/predictions.jsonl", "--benchmarks", "own.py", "--out", "out",
             "--run-name", "y")  # fmt: skip
    again = json.loads(Path("out/y/own/results.json").read_text())
    assert (again["lines"], again["scores"], again["pass"]) == (found["lines"], found["scores"], found["pass"])


# ------------------------------------------------------------------------------------------- 15: what shows a plateau
def test_15_what_explains_a_plateau_is_written_down(tmp_path, monkeypatch):
    """Complaint 15, answers shrink and rewards stay (VLM-R1#280): the averaging stands in config.json; lengths by right
    and wrong, entropy and clipped shares in every line of the metrics."""
    monkeypatch.setattr("common.rewards.accuracy", coin)
    folder = train(tmp_path, steps=2, group_size=8, loss_mean="sequence_mean", mini_batch_prompts=1, clip_low=1e-4,
                   clip_high=1e-4)  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["loss_mean"] == "sequence_mean"
    for row in metrics(folder):
        names = ("length", "length/correct", "length/wrong", "entropy", "clip/low", "clip/high", "truncated",
                 "accuracy", "reward/mean", "reward/accuracy", "groups/zero_spread", "grad_norm")  # fmt: skip
        assert all(row[name] is not None for name in names)
        assert min(row["length/correct"], row["length/wrong"]) <= row["length"] <= 6 and row["entropy"] > 1
    assert max(row["clip/low"] + row["clip/high"] for row in metrics(folder)) > 0


def test_15_the_average_decides_who_pays_for_length():
    """Complaint 15: under sequence_mean a token of a long wrong answer weighs less than one of a short answer, under
    token_mean as much."""
    mask = torch.arange(8) < torch.tensor([2, 8])[:, None]
    for mode, ratio in (("sequence_mean", 4.0), ("token_mean", 1.0), ("token_sum_over_budget", 1.0)):
        losses = torch.zeros(2, 8, requires_grad=True)
        aggregate(losses, mask, mode, max_length=8).backward()
        assert float(losses.grad[0, 0] / losses.grad[1, 0]) == pytest.approx(ratio)


METHODS = sorted(path.stem for path in (ROOT / "methods").glob("*.py"))


@pytest.mark.parametrize("name", METHODS)
def test_15_every_method_logs_entropy_and_clipping_and_names_its_average(name):
    """Complaint 15 (VLM-R1#332, collapse): no method leaves out what would show it."""
    source = (ROOT / "methods" / f"{name}.py").read_text()
    assert 'averages.add("entropy"' in source
    if re.search(r"\bclipped_loss\(|\bclip_low\b", source):
        assert 'averages.add("clip/low"' in source and 'averages.add("clip/high"' in source
    if name != "sft":
        assert "rollout_metrics(" in source
    named = "loss_mean:" in source or re.search(r'aggregate\(losses, mask, "(token|sequence)_mean"', source)
    assert named or name in ("pearl", "sft")  # PEARL's two sums are its formula; SFT has the mean over tokens


# ------------------------------------------------------------------------------------------------------ docs/faq.md
FAQ = (ROOT / "docs/faq.md").read_text() if (ROOT / "docs/faq.md").exists() else ""


def texts_in_the_code() -> list[str]:
    """Every string of the program, its inserted values as one sign."""
    found = []
    for path in [p for folder in ("common", "methods", "eval") for p in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
    return [*found, (ROOT / "run.sh").read_text()]


def quoted_errors() -> list[str]:
    """The error texts in the list items of the page: `...` before a colon; … stands for what is inserted."""
    return re.findall(r"^- `([^`]+)`:", FAQ.partition("## The fifteen complaints")[0], re.MULTILINE)


def test_quoted_errors_exist_in_the_code():
    texts = texts_in_the_code()
    assert len(quoted_errors()) >= 40
    for quoted in quoted_errors():
        parts = [part for part in quoted.split("…") if part.strip(" .:;,()")]
        assert sum(map(len, parts)) >= 12, f"{quoted!r} says too little to be found"
        form = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(form.search(text) for text in texts), f"docs/faq.md quotes {quoted!r}, which the program never says"


def test_complaints_on_the_page_name_tests_that_exist():
    told = FAQ.partition("## The fifteen complaints")[2]
    here = {name for name in globals() if name.startswith("test_")}
    named = set(re.findall(r"`(test_\w+)`", told))
    assert named <= here and {name for name in here if re.match(r"test_\d\d_", name)} == named
    assert re.findall(r"^(\d+)\. ", told, re.MULTILINE) == [str(n) for n in range(1, 16)]
