"""Statistics over several runs of several methods: pure functions on arrays, with intervals.

Two things vary when a run is repeated: the seed of training and the questions that happen to be asked.
Intervals of held-out scores therefore resample both, seeds and questions independently (two-way bootstrap);
methods are compared on equal seeds and equal questions. Learning curves have no questions: only seeds are
resampled. With fewer than about five seeds every bootstrap interval over seeds is too narrow.
"""

import numpy as np

from common.evaluation import DRAWS, bootstrap_interval, percentile_interval


def two_way_draws(scores: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap means over seeds and questions, float64 [draws]. scores: float64 [seeds, questions]."""
    generator = np.random.default_rng(seed)
    seeds, questions = scores.shape
    rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)  # [draws, seeds]
    means = []
    for part in np.array_split(rows, max(1, draws * questions // 2_000_000)):  # about 16 MB of counts each
        columns = generator.multinomial(questions, np.full(questions, 1 / questions), size=len(part))
        means.append((part @ scores * columns).sum(axis=1))  # [len(part)]
    return np.concatenate(means) / (seeds * questions)


def estimate(scores: np.ndarray) -> dict:
    """{"score", "interval"} of the mean of scores [seeds, questions]."""
    return {"score": float(scores.mean()), "interval": percentile_interval(two_way_draws(scores))}


def paired_difference(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a - b with its interval; row s of both is the same seed, column q the same question."""
    result = estimate(a - b)
    return {"difference": result["score"], "interval": result["interval"]}


def probability_of_improvement(a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0) -> dict:
    """Chance that a run of a beats a run of b on a task drawn at random; ties count half.

    a, b: float64 [seeds, tasks]. Agarwal et al. 2021, arXiv 2108.13264, section 4.3; the interval resamples
    the runs of every task separately.
    """

    def chance(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # [..., seeds, tasks] each
        difference = x[..., :, None, :] - y[..., None, :, :]
        return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-3, -2, -1))

    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        x = np.take_along_axis(a, generator.integers(len(a), size=a.shape), axis=0)
        y = np.take_along_axis(b, generator.integers(len(b), size=b.shape), axis=0)
        found.append(chance(x, y))
    return {"probability": float(chance(a, b)), "interval": percentile_interval(np.array(found))}


def interquartile_mean(scores: np.ndarray, draws: int = 2000, seed: int = 0) -> dict:
    """{"score", "interval"}: mean of the middle half of all scores, which neither a lucky nor a broken run moves much.

    scores: float64 [seeds, tasks]. Agarwal et al. 2021, section 4.3; the interval resamples the runs of every task
    separately (stratified bootstrap).
    """

    def middle(part: np.ndarray) -> np.ndarray:  # [..., seeds * tasks]
        ordered, cut = np.sort(part, axis=-1), part.shape[-1] // 4
        return ordered[..., cut : part.shape[-1] - cut].mean(axis=-1)

    rows = np.random.default_rng(seed).integers(len(scores), size=(draws, *scores.shape))
    resampled = np.take_along_axis(scores[None], rows, axis=1)  # [draws, seeds, tasks]
    return {
        "score": float(middle(scores.reshape(-1))),
        "interval": percentile_interval(middle(resampled.reshape(draws, -1))),
    }


# ---------------------------------------------------------------- learning curves


def binned(tokens: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean of `values` between consecutive edges, [len(edges) - 1]; an empty bin repeats the one before it.

    tokens: rising positions [n] of values [n].

    >>> binned(np.array([1, 2, 9]), np.array([0.0, 1.0, 4.0]), np.array([0, 3, 6, 9]))
    array([0.5, 0.5, 4. ])
    """
    bins = np.clip(np.searchsorted(edges, tokens, side="left") - 1, 0, len(edges) - 2)
    means: list[float] = []
    for i in range(len(edges) - 1):
        inside = values[bins == i]
        means.append(float(inside.mean()) if len(inside) else means[-1] if means else float(values[0]))
    return np.array(means)


def curve_interval(curves: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap 95 % band over seeds, (low, high) [bins] each. curves: float64 [seeds, bins]."""
    rows = np.random.default_rng(seed).integers(len(curves), size=(draws, len(curves)))
    low, high = np.percentile(curves[rows].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values (fewer at the start), [n].

    >>> smoothed(np.array([1.0, 3.0, 5.0]), 2)
    array([1., 2., 4.])
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def first_reach(values: np.ndarray, level: float) -> int | None:
    """Index of the first value of at least `level`, None if there is none."""
    reached = np.flatnonzero(values >= level)
    return int(reached[0]) if len(reached) else None


def difference_over_seeds(a: np.ndarray, b: np.ndarray) -> dict:
    """Mean of a - b [seeds], paired by seed, with an interval over seeds."""
    return {"difference": float((a - b).mean()), "interval": bootstrap_interval(a - b)}
