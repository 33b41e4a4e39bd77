"""Visual facts as supervision: where they come from, and which of them a response states.

    "<info1>AB is 5 long</info1><info2>AB is parallel to CD</info2>"      the column visual_key_info of a row

The facts of a question are what one has to see in its picture to answer it; "" means that nothing is known. In the
micro-world they follow from the scene (world/facts.py); for other data `make_facts` lets a judge (judge.py) extract
them from correct solutions. `verdicts_on` lets a judge compare responses with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.args import CommonArgs
from common.checkpoint import disk_errors
from common.data import Sample, parse_columns
from common.errors import SightRLError
from common.evaluation import Evaluation, compare_evaluations
from common.judge import Judge, open_judge
from common.readers.shared import Options, json_rows
from common.readers.tables import required
from common.rewards import repetition
from common.run import Run
from common.training import held_out
from common.world.facts import facts_of, stated

COLUMN = "visual_key_info"
LONGEST = 20_000  # characters of a reply that are read
STATED_PROMPT = """Below are numbered facts about a picture, and somebody's response to a question about that picture. \
Find out which of the facts the response states, in whatever words. Do not ask whether the response is right or \
useful: only whether the fact stands in it. For every fact write one tag with its number, holding 1 if it is stated \
and 0 if not, such as <info1>0</info1>, and nothing else.

Facts: {facts}

Response: """
MAKE_PROMPT = """Below are a question about a picture and a correct solution. List what one has to see in the picture \
to get there: lengths, angles, labels, numbers, colors, positions, what is parallel or perpendicular. One short fact \
per item; leave out all that is calculated or concluded, all that stands in the question, and all that the solution \
does not need. Number the facts with tags: <info1>first fact</info1><info2>second fact</info2>, and write nothing else.

Question: {question}

Solution: """


def visual_facts(sample: Sample) -> str:
    """The facts of a question in their tags, "" if it has none. Raises SightRLError if the column is missing."""
    if COLUMN in sample.meta:
        return str(sample.meta[COLUMN] or "")
    if "things" in sample.meta:
        return tagged(facts_of(sample.task, sample.question, sample.meta["things"], sample.meta["relevant"]))
    raise SightRLError(f"{sample.where or sample.id} has no column {COLUMN} with facts such as <info1>AB is 5 long"
                       "</info1>; add it (--make-facts FILE does), or rename the column that holds them.")  # fmt: skip


def tagged(items: list[str]) -> str:
    """ "<info1>first</info1><info2>second</info2>"."""
    return "".join(f"<info{k}>{item}</info{k}>" for k, item in enumerate(items, 1))


def tags(text: str) -> list[str]:
    """Contents of <info1>, <info2>, ... up to the first that is missing; of several with one number the last.

    >>> tags("<info1>0</info1> no, <info1>1</info1><info2></info2>")
    ['1']
    """
    text, found = text[:LONGEST], []
    while True:
        opened, closed = (f"<{slash}info{len(found) + 1}>" for slash in ("", "/"))
        start = text.rfind(opened, 0, max(0, text.rfind(closed) - 1))  # at least one character inside
        if start < 0:
            return found
        start += len(opened)
        found.append(text[start : text.find(closed, start + 1)])


def verdicts(reply: str) -> list[float]:
    """What a judge says of each fact, in [0, 1]; 0 for what is no number. [] if it says nothing."""
    scores = []
    for content in tags(reply):
        try:
            scores.append(min(1.0, max(0.0, float(content))))
        except ValueError:
            scores.append(0.0)
    return scores


def verdicts_on(judge: Judge, texts: list[str], samples: list[Sample]) -> list[list[float]]:
    """The judge's verdicts on every response, texts[i] to samples[i]; [] where the question has no facts."""
    facts = [visual_facts(sample) for sample in samples]
    replies = iter(judge([STATED_PROMPT.replace("{facts}", f) + t for f, t in zip(facts, texts, strict=True) if f]))
    return [verdicts(next(replies)) if f else [] for f in facts]


def oracle(prompt: str) -> str:
    """The judge of the micro-world: reads the prompt of `verdicts_on` and matches the facts exactly."""
    facts, _, response = prompt.partition("Facts: ")[2].partition("\n\nResponse: ")
    return tagged([str(int(hit)) for hit in stated(tags(facts), response)])


# ---------------------------------------------------------------- perception as the paper's effect


def perceived(judge: Judge | None, args: CommonArgs, evaluation: Evaluation | None, path: Path) -> Evaluation | None:
    """The held-out answers with the score 1 where all facts of the question are stated, saved under `path`.

    Its records have more: recall (per response the share stated), facts (how many there are), right (the former
    scores). Questions without facts are left out; None without a judge, an evaluation, or any question with facts.
    """
    if judge is None or evaluation is None:
        return None
    known = {(split, sample.id): sample for split, part in held_out(args).items() for sample in part}
    pairs = [(record, known[record["split"], record["id"]]) for record in evaluation.records]
    pairs = [(record, sample) for record, sample in pairs if visual_facts(sample)]
    texts = [text for record, _ in pairs for text in record["responses"]]
    scores = iter(verdicts_on(judge, texts, [sample for record, sample in pairs for _ in record["responses"]]))
    records = []
    for record, sample in pairs:
        facts = max(len(tags(visual_facts(sample))), 1)
        recall = [sum(next(scores)[:facts]) / facts for _ in record["responses"]]
        more = {"recall": recall, "facts": facts, "right": record["scores"]}
        records.append(record | more | {"scores": [float(value == 1) for value in recall]})
    if not records:
        return None
    result = Evaluation(records, evaluation.k, evaluation.settings)
    result.save(path)
    return result


def effects_of(evaluation: Evaluation, own: Evaluation | None, n: int) -> dict[str, float]:
    """Means over responses: repetition rate of n-grams; of `own`, which `perceived` made: fact recall, all facts
    stated, and accuracy on questions with several facts."""
    texts = [text for record in evaluation.records for text in record["responses"]]
    lists = {"repetition rate": [repetition(text, n) for text in texts]}
    if own is not None:
        lists["fact recall"] = [share for r in own.records for share in r["recall"]]
        lists["all facts stated"] = [hit for r in own.records for hit in r["scores"]]
        lists["accuracy with several facts"] = [value for r in own.records if r["facts"] > 1 for value in r["right"]]
    return {name: float(np.mean(values)) for name, values in lists.items() if values}


def perception_effects(
    run: Run,
    before: Evaluation | None,
    after: Evaluation | None,
    own: tuple[Evaluation | None, Evaluation | None],
    n: int,
) -> dict[str, tuple[float, float]]:
    """Effects for `conclude`: name -> (before, after). Says McNemar's test on the questions perceived, which `conclude`
    writes to the summary with the comparison of `own`."""
    if before is None or after is None:
        return {}
    if own[0] is not None and own[1] is not None:
        test = compare_evaluations(own[0], own[1])["mcnemar"]
        run.say("questions perceived: {gained} gained, {lost} lost, McNemar's exact p {p:.4f}".format(**test))
    old, new = effects_of(before, own[0], n), effects_of(after, own[1], n)
    return {name: (old[name], new[name]) for name in old if name in new}


# ---------------------------------------------------------------- facts for other data


def make_facts(judge: str, data: str, columns: str, out: str,
               grade: Callable[[list[str], list[Sample]], list[float]]) -> None:  # fmt: skip
    """Write to the file `out` the rows of a JSON-lines file whose column response holds a solution that is right, with
    the facts that a judge finds in it; keep `out` beside the file, so that the paths of its pictures hold.

    judge: as in --judge; its replies are kept in <out>.cache. data: "jsonl:FILE". columns: as in --columns.
    grade: (solutions, samples) -> 1.0 or 0.0 each. Raises SightRLError.
    """
    ask = open_judge(judge, cache=Path(f"{out}.cache"))
    options, rows, samples, solutions = Options(columns=parse_columns(columns)), [], [], []
    for where, _, row in json_rows(Path(data.removeprefix("jsonl:"))):
        if not isinstance(row, dict):
            raise row if isinstance(row, SightRLError) else SightRLError(f"{where} is no object; write {{...}}.")
        question, answer, solution = (str(required(row, n, options, where)) for n in ("question", "answer", "response"))
        rows.append(row)
        solutions.append(solution)
        samples.append(Sample(where, question, answer, "", []))
    right = [i for i, value in enumerate(grade(solutions, samples)) if value]
    replies = ask([MAKE_PROMPT.replace("{question}", samples[i].question) + solutions[i] for i in right])
    lines = [json.dumps(rows[i] | {COLUMN: tagged(tags(reply))}) for i, reply in zip(right, replies, strict=True)]
    with disk_errors(Path(out)):
        Path(out).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{out}: {len(lines)} of {len(rows)} rows, those whose response is right")
