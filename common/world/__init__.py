"""The micro-world: pictures with complete ground truth, questions about them, a tiny VLM that half knows how to look.

One file per concern: scene.py (what there is, how it is drawn), questions.py (eight families of questions),
habits.py (careful, sloppy and blind answers), truth.py (captions, errors, relations, damaged pictures),
train_tiny_vlm.py (makes tiny_vlm/). A new family of scenes is one more file and a re-run of the training script.

Everything follows from (split, index): the same pair gives the same picture and question on every machine.
"""

from __future__ import annotations

import random

from common.world.habits import HABITS, habit_of, pick_habit, response, visual_spans
from common.world.questions import FAMILIES, Question
from common.world.scene import Scene, render
from common.world.truth import caption, thing_record

# split -> (answer prior, held-out pairs are asked about, number of questions)
SPLITS = {
    "train": ("train", False, 1_000_000),
    "val": ("train", False, 20_000),
    "test": ("train", False, 20_000),
    "test_combo": ("train", True, 20_000),  # colour-shape pairs that training never shows
    "test_counter": ("counter", False, 20_000),  # the answer prior is another one: guessing without looking fails
}

__all__ = ["FAMILIES", "HABITS", "SPLITS", "Question", "Scene", "habit_of", "make_question", "pick_habit", "render",
           "response", "visual_spans", "world_dataset_size", "world_sample"]  # fmt: skip


def make_question(split: str, index: int) -> Question:
    """Question number `index` of a split; families take turns.

    Raises KeyError for an unknown split, IndexError outside the split.
    """
    prior, combo, size = SPLITS[split]
    if not 0 <= index < size:
        raise IndexError(f"the world split {split!r} has {size} questions, no number {index}")
    rng = random.Random(f"sightrl:{split}:{index}")
    family = list(FAMILIES)[index % len(FAMILIES)]
    return FAMILIES[family](rng, prior, combo)


def world_dataset_size(split: str) -> int:
    return SPLITS[split][2]


def world_sample(split: str, index: int) -> dict:
    """One question as a plain record: id, question, answer, task, answer_type, image (PIL RGB 112 x 112), meta.

    meta (JSON values): split, things (all attributes and boxes), relevant (cells a careful reader looks at), caption,
    steps (sub-questions with answers), program. Raises as make_question.
    """
    q = make_question(split, index)
    meta = {
        "split": split, "things": [thing_record(t) for t in q.scene.things], "relevant": [t.cell for t in q.relevant],
        "caption": caption(q.scene), "steps": [list(s) for s in q.steps], "program": q.program,
    }  # fmt: skip
    return {"id": f"world:{split}:{index}", "question": q.question, "answer": q.answer, "task": q.family,
            "answer_type": q.answer_type, "image": render(q.scene), "meta": meta}  # fmt: skip
