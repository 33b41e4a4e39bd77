r"""MEGA-Bench's metrics for a field (megabench/metrics/scoring): METRICS[name](predicted, truth) -> score.

predicted is a text, or whatever JSON holds; the truth is the published text, for CONTEXT metrics the column
eval_context. Like the original, field_score gives 0 for whatever a metric cannot digest.

Not here, and scored UNSUPPORTED, are the metrics of 27 of the 440 core tasks, which have no other:
constrained_generation (18 tasks; WordNet's lemmas, NLTK's sentences, the CMU dictionary of pronunciations),
program_judge (8; runs code from the response) and gleu_cn (1; the words of jieba). The others that are missing are in
no core task: bleu, geo_proximity_location_dict (asks a map service), the GPT-4o judges. Counted in task_examples/ of
the repository.

Three are near the original, not the same: near_str_match takes accents away but does not transliterate other scripts;
the numerical matches read arithmetic with common.maths instead of sympy and eval; the LaTeX ones ask math-verify
instead of sympy.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Number
from typing import Any

import numpy as np

from common.errors import SightRLError
from megabench_parse import items, parse_json, python_literal
from megabench_values import (
    angle_rmse,
    any_reference,
    boxed_number,
    exact,
    exact_any_case,
    exact_code_result,
    latex,
    near,
    normalised_rmse,
    one_number,
    positive_int,
    relative_difference,
    similarity,
    simple,
    text_and_latex,
)  # fmt: skip

UNSUPPORTED = -1.0  # as in the original a negative score is left out of the mean of the fields


def field_score(name: str, predicted: Any, truth: Any) -> float:
    """The score of a field, UNSUPPORTED for a metric that is not here, else within [0, 1] (or -1, see positive_int)."""
    metric = METRICS.get(name) or CONTEXT.get(name)
    if metric is None:
        return UNSUPPORTED
    try:
        score = float(metric(predicted, truth))
    except SightRLError:  # math-verify is missing
        raise
    except Exception:  # the original: an answer in an unexpected form is wrong
        return 0.0
    return UNSUPPORTED if score < 0 else min(score, 1.0) if not math.isnan(score) else 0.0


# ---------------------------------------------------------------- lists and sets


def frozen(value: Any) -> Hashable:
    if isinstance(value, dict):
        return frozenset((key, frozen(one)) for key, one in value.items())
    return tuple(frozen(one) for one in value) if isinstance(value, list | tuple) else value


def distinct(text: Any) -> set[Any] | str:
    """The items of a text as a set; if one of them, such as a list, cannot be in a set, an empty one; "" for "None"."""
    found = items(text)
    try:
        return found if isinstance(found, str) else set(found)
    except TypeError:
        return set()


def as_set(value: Any) -> set[Any] | str:
    value = frozen(value)
    return set(value) if isinstance(value, frozenset | set | tuple) else distinct(value)


def overlap(predicted: Iterable[Any], truth: Iterable[Any]) -> float:
    """Jaccard index; 1 for two empty sets."""
    predicted, truth = set(predicted), set(truth)
    return len(predicted & truth) / len(predicted | truth) if predicted or truth else 1.0


def jaccard(predicted: Any, truth: Any) -> float:
    return 0.0 if predicted is None else overlap(as_set(predicted), as_set(truth))


def jaccard_any_case(predicted: Any, truth: Any) -> float:
    """In lower case; where the truth has tuples, also without blanks and marks."""
    values, targets = as_set(predicted), as_set(truth)
    kind = type(next(iter(targets)))
    if predicted is None or kind not in (str, tuple):
        return 0.0
    if kind is str:
        return overlap({str(one).lower() for one in values}, {one.lower() for one in targets})
    squeezed = ({tuple(re.sub(r"[ \-\n\t_.]", "", part.lower()) for part in one) for one in side}
                for side in (values, targets))  # fmt: skip
    return overlap(*squeezed)


def set_precision(predicted: Any, truth: Any) -> float:
    values = set(as_set(predicted))
    return 0.0 if predicted is None else len(values & set(as_set(truth))) / len(values) if values else 1.0


def same_set(predicted: Any, truth: Any) -> bool:
    return as_set(predicted) == as_set(truth)


def same_set_any_case(predicted: Any, truth: Any) -> bool:
    return {one.upper() for one in as_set(predicted)} == {one.upper() for one in as_set(truth)}


def same_lines(predicted: str, truth: str) -> bool:
    return len({frozenset(text.replace("\\n", "\n").lower().split("\n")) for text in (predicted, truth)}) == 1


def same_items(predicted: str, truth: str) -> bool:
    sides = [{one.lower() if isinstance(one, str) else one for one in distinct(text)} for text in (predicted, truth)]
    return sides[0] == sides[1]


def same_sequence(predicted: Any, truth: str) -> bool:
    return items(str(predicted)) == items(truth)


def same_sequence_any_case(predicted: Any, truth: str) -> bool:
    values = [one.lower() if isinstance(one, str) else str(one) for one in items(str(predicted))]
    return values == [one.lower() for one in items(truth)]


def sequence_accuracy(predicted: str, truth: str) -> float:
    """Share of the places with the right item; 0 for another length."""
    values, targets = items(predicted), items(truth)
    if len(values) != len(targets):
        return 0.0
    right = [value.lower() == target.lower() if isinstance(target, str) else
             isinstance(target, Number) and isinstance(value, Number) and value == target
             for value, target in zip(values, targets, strict=True)]  # fmt: skip
    return sum(right) / len(targets)


def common_prefix(predicted: Any, truth: Any) -> float:
    """Length of the common start / length of the truth."""
    values, targets = items(predicted), items(truth)
    same = [a == b for a, b in zip(values, targets, strict=False)]
    return (same.index(False) if False in same else len(same)) / len(targets)


def chess_moves(predicted: Any, truth: str) -> float:
    if predicted is None:
        return 0.0
    sides = ({move.removesuffix("!").removesuffix("#") for move in distinct(one)} for one in (predicted, truth))
    return overlap(*sides)


# ---------------------------------------------------------------- objects


def as_dict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_dict(one) for key, one in value.items()}
    return (parse_json(value) or value) if isinstance(value, str) else value


def same_dict(predicted: Any, truth: Any) -> bool:
    predicted = as_dict(predicted)
    return isinstance(predicted, dict) and predicted == as_dict(truth)


def dict_precision(predicted: Any, truth: Any) -> float:
    """Share of the predicted fields that equal the true ones."""
    predicted, truth = as_dict(predicted), as_dict(truth)
    if not isinstance(predicted, dict) or not predicted:
        return 0.0
    return sum(key in truth and exact(one, truth[key]) for key, one in predicted.items()) / len(predicted)


def dict_recall(predicted: Any, truth: Any) -> float:
    """Share of the true fields that are predicted."""
    predicted, truth = as_dict(predicted), as_dict(truth)
    if not isinstance(predicted, dict):
        return 0.0
    return sum(exact(predicted.get(key), one) for key, one in truth.items()) / len(truth)


def over_all_keys(metric: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    """The mean of a metric over the keys of either side."""

    def score(predicted: Any, truth: Any) -> float:
        predicted, truth = as_dict(predicted), as_dict(truth)
        if not isinstance(predicted, dict):
            return 0.0
        keys = set(predicted) | set(truth)
        return sum(metric(predicted.get(key, []), truth.get(key, [])) for key in keys) / len(keys)

    return score


# ---------------------------------------------------------------- boxes and points


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """As the original: without a look at the order of the corners."""
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def best_ious(predicted: Sequence[Any], truth: Sequence[Any]) -> list[float]:
    return [max((box_iou(box, one) for one in truth), default=0.0) for box in predicted]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def rows_of(text: Any, width: int) -> list[Any]:
    """The rows of so many numbers in a text that is written as a list of rows, or as one row of four."""
    if isinstance(text, list | tuple):
        return list(text)
    try:
        value = python_literal(text)
    except ValueError:
        value = json.loads(text) if isinstance(text, str) else []
    if width == 4 and len(value) == 4 and isinstance(value[0], Number):
        value = [value]
    return [row for row in value if isinstance(row, list | tuple) and len(row) == width
            and all(isinstance(one, int | float) for one in row)]  # fmt: skip


def boxes_iou(predicted: Any, truth: Any) -> float:
    """Mean over the predicted boxes of the best IoU with a true box: a box too many costs, one too few does not."""
    boxes, targets = rows_of(predicted, 4), rows_of(truth, 4)
    try:
        return mean(best_ious(boxes, targets))
    except (TypeError, IndexError, KeyError):  # not boxes; with several keys the others still count
        return 0.0


def one_box_iou(predicted: str, truth: str) -> float:
    return box_iou(python_literal(predicted), python_literal(truth))


def box_sequence_iou(predicted: Any, truth: Any) -> float:
    """Box by box; 0 for another number of boxes."""
    values = rows_of(predicted if isinstance(predicted, list | tuple) else str(predicted), 4)
    return mean([box_iou(a, b) for a, b in zip(values, rows_of(truth, 4), strict=True)])


def tagged(text: str, tag: str) -> list[str]:
    """Contents of all <tag>...</tag> that stand on one line."""
    found = []
    for line in text.split("\n"):
        while True:
            _, opened, rest = line.partition(f"<{tag}>")
            content, closed, line = rest.partition(f"</{tag}>")
            if not opened or not closed:
                break
            found.append(content)
    return found


def xml_boxes(text: Any) -> list[Any]:
    found = []
    for content in tagged(text, "box") if isinstance(text, str) else []:
        try:
            numbers = tuple(float(part) for part in content.split(","))
        except ValueError:
            continue
        found += [numbers] if len(numbers) == 4 else []
    return found


def xml_box_iou(predicted: Any, truth: Any) -> float:
    values = predicted if isinstance(predicted, list | tuple) else xml_boxes(predicted)
    values = [values] if len(values) == 4 and isinstance(values[0], Number) else values
    return mean(best_ious(values, truth if isinstance(truth, list | tuple) else xml_boxes(truth)))


def xml_point(value: Any) -> tuple[float, float]:
    """The only <point>x, y</point>, or two numbers. Raises ValueError for anything else."""
    if not isinstance(value, list | tuple):
        points = tagged(value, "point")
        value = [float(part) for part in points[0].split(",")] if len(points) == 1 else []
    x, y = value
    return float(x), float(y)


def point_distance(predicted: Any, truth: Any) -> float:
    (x, y), (u, v) = xml_point(predicted), xml_point(truth)
    inside = all(0 <= one <= 1 for one in (x, y, u, v))
    return max(0.0, 1 - math.hypot(x - u, y - v)) if inside else 0.0


def point_in_box(predicted: Any, context: dict[str, Any]) -> bool:
    x, y = xml_point(predicted)
    boxes = [rows_of(box, 4)[0] for box in context["bounding_boxes"]]
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def keypoints(predicted: Any, truth: Any) -> float:
    """Mean of exp(-10 distance / sqrt 2) over pairs of points; 0 for another number of points."""
    values, targets = (np.array(rows_of(one, 2)) for one in (predicted, truth))
    if values.shape != targets.shape:
        return 0.0
    return float(np.exp(-10 * np.linalg.norm(values - targets, axis=1) / math.sqrt(2)).mean())


# ---------------------------------------------------------------- plans


def expressions(text: str) -> list[Any]:
    """The nested lists that parentheses make; comments are left out. Raises ValueError if they do not match."""
    stack: list[list[Any]] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)):
        if word == "(":
            stack.append([])
        elif word == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    if len(stack) != 1:
        raise ValueError("parentheses do not match")
    return stack[0]


def part_of(expression: list[Any], name: str) -> Any:
    """What follows the keyword, in a definition or in an action."""
    for at, one in enumerate(expression):
        if one == name:
            return expression[at + 1]
        if isinstance(one, list) and one[:1] == [name]:
            return one[1:]
    return []


def facts(expression: list[Any]) -> list[list[Any]]:
    """The terms of a conjunction, or of a single condition."""
    return expression[1:] if expression[:1] == ["and"] else [expression] if expression else []


def filled(fact: Sequence[Any], objects: dict[str, str]) -> tuple[Any, ...]:
    """With objects in the place of parameters."""
    return tuple(objects.get(one, one) if isinstance(one, str) else filled(one, objects) for one in fact)


def plan_works(predicted: Any, context: dict[str, Any]) -> bool:
    """Whether the actions, one a line like "(move a b)", can be carried out and reach the goal.

    As in the original nobody checks types, and conditions that begin with "not" always hold.
    """
    domain, task = (expressions(context[name])[0] for name in ("domain_pddl", "task_pddl"))
    actions = {one[1]: one for one in domain if isinstance(one, list) and one[:1] == [":action"]}
    state = {filled(one, {}) for one in part_of(task, ":init")}
    lines = predicted.split("\n") if isinstance(predicted, str) else list(predicted)
    for line in (line.strip() for line in lines if line.startswith("(")):
        name, *objects = line[1:-1].split(" ")
        action = actions[name]
        parameters = [word for word in part_of(action, ":parameters") if str(word).startswith("?")]
        if len(objects) != len(parameters):
            return False
        given = dict(zip(parameters, objects, strict=True))
        needed = [filled(fact, given) for fact in facts(part_of(action, ":precondition"))]
        if not all(fact in state for fact in needed if fact[0] != "not"):
            return False
        effects = [filled(fact, given) for fact in facts(part_of(action, ":effect"))]
        state -= {fact[1] for fact in effects if fact[0] == "not"}
        state |= {fact for fact in effects if fact[0] != "not"}
    goal = [filled(fact, {}) for fact in facts(part_of(task, ":goal")[0])]
    return all(fact in state for fact in goal if fact[0] != "not")


METRICS: dict[str, Callable[[Any, Any], float]] = {
    "exact_str_match": exact, "simple_str_match": simple, "code_result_exact_str_match": exact_code_result,
    "exact_str_match_case_insensitive": exact_any_case, "multi_ref_phrase": any_reference, "near_str_match": near,
    "normalized_similarity_damerau_levenshtein": similarity, "number_rel_diff_ratio": relative_difference,
    "positive_int_match": positive_int, "normalized_rmse": normalised_rmse, "angle_seq_float_rmse": angle_rmse,
    "general_single_numerical_match": one_number, "boxed_single_numerical_match": boxed_number,
    "latex_expr_equality": latex, "text_with_latex_expr_equality": text_and_latex, "jaccard_index": jaccard,
    "jaccard_index_case_insensitive": jaccard_any_case, "set_precision": set_precision, "set_equality": same_set,
    "set_equality_case_insensitive": same_set_any_case, "str_set_equality_line_break": same_lines,
    "str_set_equality_comma": same_items, "sequence_equality": same_sequence,
    "sequence_equality_case_insensitive": same_sequence_any_case,
    "sequence_accuracy_case_insensitive": sequence_accuracy, "longest_common_list_prefix_ratio": common_prefix,
    "chess_move_list_jaccard_index": chess_moves, "dict_equality": same_dict, "dict_precision": dict_precision,
    "dict_exact_str_match_agg_recall": dict_recall, "dict_jaccard_agg_jaccard": over_all_keys(jaccard),
    "dict_set_equality_agg_jaccard": over_all_keys(same_set), "nbbox_iou_tuple": boxes_iou,
    "dict_nbbox_iou_tuple_agg_jaccard": over_all_keys(boxes_iou), "nbbox_iou_single": one_box_iou,
    "nbbox_iou_sequence": box_sequence_iou, "xml_nbbox_iou_single": xml_box_iou,
    "xml_norm_point_distance": point_distance, "sequence_coords_similarity": keypoints,
    "nli_entailment": lambda predicted, truth: 0.0,  # the original gives 0 for every truth that is a text
}  # fmt: skip
CONTEXT: dict[str, Callable[[Any, Any], float]] = {
    "symbolic_planning_test": plan_works, "xml_norm_point_in_bbox": point_in_box,
}  # fmt: skip
