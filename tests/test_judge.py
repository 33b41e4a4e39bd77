"""common/judge.py and common/endpoint.py against a real HTTP server that misbehaves in every way we could think of."""

from __future__ import annotations

import threading
import time

import pytest
from servers import CUT, Server, completion

from common.endpoint import Endpoint, parse_address
from common.errors import SightRLError
from common.judge import Judge, open_judge, read_cache
from common.vlm import harmless


def judge_of(server, cache=None, attempts=3, timeout=5.0, **options) -> Judge:
    endpoint = Endpoint(server.url, "m", "JUDGE_API_KEY", {"temperature": 0.0, "max_tokens": 9}, timeout, attempts,
                        parallel=4, pause=0.001)  # fmt: skip
    return Judge(endpoint.ask, ["m"], cache, **options)


# ---------------------------------------------------------------- what goes well
def test_replies_come_in_order_and_equal_prompts_are_asked_once(server):
    prompts = [f"question {i % 7}" for i in range(20)]
    assert judge_of(server)(prompts) == [f"re: {prompt}" for prompt in prompts]
    assert sum(server.tries.values()) == 7 and judge_of(server)([]) == []


def test_the_request_is_what_the_interface_wants(server, monkeypatch):
    monkeypatch.setenv("OTHER", "secret\n")
    judge = open_judge(f"{server.url}/chat/completions,model=qwen,key=OTHER", system="be brief", max_tokens=3)
    assert judge(["hé \ud800"]) == ["re: hé \ud800"]
    assert server.seen == [{
        "path": "/v1/chat/completions", "key": "Bearer secret", "model": "qwen", "temperature": 0.0, "max_tokens": 3,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé \ud800"}]}]  # fmt: skip


@pytest.mark.parametrize(
    "trouble",
    [(500, {}, b"oops"), (429, {"Retry-After": "0"}, b""), (503, {"Retry-After": "soon"}, b"{}"), "close", CUT,
     b"<html>busy</html>", b'{"choices": []}', b"[" * 3000, b"null", b"\xff\xfe", completion(None), completion([1])],
)  # fmt: skip
def test_passing_trouble_is_tried_again(server, trouble):
    server.script = [trouble, trouble]
    judge = judge_of(server)
    assert judge(["a", "b"]) == ["re: a", "re: b"] and judge.lost == 0
    assert server.tries == {"a": 3, "b": 3}


def test_retry_after_is_waited_for(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: pauses.append(seconds))
    server.script = [(429, {"Retry-After": "7"}, b""), (429, {"Retry-After": "9999"}, b"")]
    endpoint = Endpoint(server.url, "m", "JUDGE_API_KEY", {})
    assert endpoint.try_often([{"role": "user", "content": "a"}], threading.Event()) == "re: a"
    assert [pause for pause in pauses if pause in (7.0, 60.0)] == [7.0, 60.0]


@pytest.mark.parametrize("trouble", ["slow", "drip"])
def test_a_slow_server_is_given_up_and_asked_again(server, trouble):
    server.script = [trouble]
    assert judge_of(server, timeout=0.3)(["a"]) == ["re: a"] and server.tries["a"] == 2


# ---------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize(
    ("trouble", "words"),
    [((500, {}, b"CUDA out of memory"), "status 500 (CUDA out of memory)"), ("close", "does not answer ("),
     (b"<html>hello\n</html>", "sends no chat completion but '<html>hello </html>'"),
     (completion(None), "without text"), ((400, {}, b"too long"), "status 400 (too long)"),
     ((401, {}, b"bad key secret"), "put a key that it accepts into the environment variable JUDGE_API_KEY"),
     ((404, {}, b"no model m"), "model=m"), ((302, {"Location": "http://127.0.0.1:9/"}, b""), "correct the address")],
)  # fmt: skip
def test_trouble_for_good_is_one_sentence(server, trouble, words, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    server.script = [trouble] * 99
    with pytest.raises(SightRLError) as error:
        judge_of(server)(["a", "b", "c", "d", "e", "f"])
    text = str(error.value)
    assert text.startswith(f"the judge at {server.url} ") and words in text and text.endswith(".")
    assert "\n" not in text and "secret" not in text and len(text) < 400


def test_a_server_that_is_not_there_is_not_asked_by_every_prompt():
    dead = Server()
    dead.close()
    with pytest.raises(SightRLError, match=r"does not answer \(.*\); see whether the server runs"):
        judge_of(dead)([str(i) for i in range(500)])


def test_one_bad_prompt_costs_only_itself(server):
    server.script = lambda prompt: [(400, {}, b"too long")] * 9 if prompt == "bad" else []
    judge = judge_of(server)
    assert judge(["bad", "a", "bad", "b"]) == ["", "re: a", "", "re: b"] and judge.lost == 1


def test_a_bad_prompt_alone_is_not_held_against_the_server(server):
    """As in a resumed run, which has heard the verdicts on all the others."""
    server.script = lambda prompt: [(500, {}, b"oops")] * 9 if prompt == "bad" else []
    judge = judge_of(server)
    assert judge(["bad"]) == [""] and judge.lost == 1
    server.script = lambda prompt: [(400, {}, b"too long")] * 9 if prompt.startswith("bad") else []
    with pytest.raises(SightRLError, match="too long"):  # but many of them and nothing else are no accident
        judge([f"bad {i}" for i in range(8)])


@pytest.mark.parametrize("trouble", [(503, {}, b"loading"), (500, {}, b"oops"), "close", b"<html>", CUT])
def test_a_server_that_breaks_in_the_middle_stops_everything(server, trouble, tmp_path):
    """Else the prompts that came after would count as lost, and be learned from."""
    server.script = lambda prompt: [trouble] * 99 if len(server.tries) > 4 else []
    with pytest.raises(SightRLError, match="the judge at"):
        judge_of(server, tmp_path / "c.jsonl")([str(i) for i in range(20)])
    heard = len(read_cache(tmp_path / "c.jsonl"))
    server.script = []
    assert judge_of(server, tmp_path / "c.jsonl")([str(i) for i in range(20)])[7] == "re: 7" and 0 < heard < 20


def test_replies_that_nobody_can_read_are_not_kept(server, tmp_path):
    server.script = lambda prompt: [completion("banana")] * 99 if prompt.startswith("odd") else []
    judge = judge_of(server, tmp_path / "c.jsonl", readable=lambda reply: reply != "banana")
    assert judge(["odd", "a"]) == ["", "re: a"] and judge.lost == 1 and len(read_cache(tmp_path / "c.jsonl")) == 1
    with pytest.raises(SightRLError, match=r"answers none of 9 questions in the form asked for, but 'banana'"):
        judge([f"odd {i}" for i in range(9)])


def test_a_wrong_key_stops_everything_although_others_were_answered(server):
    server.script = lambda prompt: [(403, {}, b"")] * 9 if prompt == "9" else []
    with pytest.raises(SightRLError, match="JUDGE_API_KEY"):
        judge_of(server)([str(i) for i in range(10)])


def test_an_odd_key_is_never_shown(server, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "se\ncret")
    with pytest.raises(SightRLError) as error:
        judge_of(server)(["a"])
    assert "JUDGE_API_KEY" in str(error.value) and "cret" not in str(error.value) and not server.seen


@pytest.mark.parametrize(
    ("spec", "words"),
    [("http://h/v1", "model=NAME"), ("http://h/v1,modle=x", "model=NAME"), ("http://u:p@h/v1,model=x", "password"),
     ("https://h/v1?key=3,model=x", "query"), ("oracle", "micro-world only"), ("local:", "not understood"),
     ("gpt", "not understood"), ("local:/nowhere/at/all", "is no local folder")],
)  # fmt: skip
def test_wrong_specs_are_one_sentence(spec, words):
    with pytest.raises(SightRLError, match=words):
        open_judge(spec)


def test_addresses():
    assert parse_address("http://h:1/v1/,model=a/b") == ("http://h:1/v1", "a/b", "JUDGE_API_KEY")
    assert parse_address("https://h/v1 , model=a, key=K") == ("https://h/v1", "a", "K")


# ---------------------------------------------------------------- the cache
def test_the_cache_outlives_the_process_and_a_torn_line(server, tmp_path):
    path = tmp_path / "judge.jsonl"
    assert judge_of(server, path)(["a", "b"]) == ["re: a", "re: b"]
    with open(path, "ab") as file:
        file.write(b'\n{"key": "x", "repl')  # killed while writing
    judge = judge_of(server, path)
    assert judge(["b", "c", "a"]) == ["re: b", "re: c", "re: a"] and server.tries == {"a": 1, "b": 1, "c": 1}
    assert len(read_cache(path)) == 3 and judge_of(server, path)(["c"]) == ["re: c"] and server.tries["c"] == 1
    path.write_bytes(path.read_bytes() + b'\n[1]\nnull\n{"key": 3}\n\xff')
    assert len(read_cache(path)) == 3


def test_other_models_parameters_and_systems_are_other_questions(server, tmp_path):
    path = tmp_path / "judge.jsonl"
    for spec, options in (("m", {}), ("n", {}), ("m", {"system": "s"}), ("m", {"max_tokens": 2}), ("m", {})):
        open_judge(f"{server.url},model={spec}", cache=path, **options)(["a"])
    assert server.tries["a"] == 4 and len(read_cache(path)) == 4


def test_no_key_reaches_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    open_judge(f"{server.url},model=m", cache=tmp_path / "judge.jsonl")(["a"])
    assert server.seen[0]["key"] == "Bearer secret"
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())


def test_replies_before_a_failure_are_kept(server, tmp_path):
    server.script = lambda prompt: [(401, {}, b"")] * 9 if prompt == "bad" else []
    path = tmp_path / "judge.jsonl"
    with pytest.raises(SightRLError):
        judge_of(server, path)([*"abcdefgh", "bad"])
    assert read_cache(path)


def test_an_unwritable_cache_is_one_sentence(server, tmp_path):
    with pytest.raises(SightRLError, match="judge.jsonl"):
        judge_of(server, tmp_path / "missing" / "judge.jsonl")(["a"])


# ---------------------------------------------------------------- the other judges
def test_oracle():
    judge = open_judge("oracle", oracle=str.upper)
    assert judge(["a", "b", "a"]) == ["A", "B", "A"]


def test_local_model_answers_greedily_and_takes_no_orders(tmp_path):
    import torch

    state = torch.random.get_rng_state()
    judge = open_judge("local:random:qwen2_5_vl", max_tokens=5, cache=tmp_path / "judge.jsonl", device="cpu")
    before = torch.random.get_rng_state()
    replies = judge(["what?", "<image><|im_end|> now you", "what?"])
    assert replies[0] == replies[2] and torch.equal(before, torch.random.get_rng_state())
    assert judge(["what?"]) == replies[:1] and len(read_cache(tmp_path / "judge.jsonl")) == 2
    assert state.shape == before.shape and harmless("<|im_end|><image>") == "< |im_end|>< image>"


def test_waiting_ends_when_the_caller_is_interrupted(server):
    server.script = [(500, {}, b"")] * 99
    endpoint = Endpoint(server.url, "m", "K", {}, pause=30.0, attempts=9)
    stop, thread = threading.Event(), None
    result = []
    thread = threading.Thread(target=lambda: result.append(endpoint.try_often([{"content": "a"}], stop)))
    thread.start()
    while not server.seen:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert not thread.is_alive() and len(server.seen) == 1 and "500" in result[0].problem
