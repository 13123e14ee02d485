"""Statistics of rewards against true distances.  Axes: B bootstrap samples, M clips."""

import numpy as np
from scipy.stats import rankdata

RESAMPLES, LEVEL = 300, 95  # of the bootstrap, % of its interval
DEAD = 0.1  # of its largest value: a slope below it no longer leads anywhere


def spearman(reward: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Rank correlation [..] of rewards [.., M] with negative distances [.., M]; 0 where either is constant."""
    a, b = (rankdata(x, axis=-1) for x in (reward, -distance))
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    norm = np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))
    return np.divide((a * b).sum(-1), norm, out=np.zeros_like(norm), where=norm > 0)


def resampled(count: int, seed: int = 0) -> np.ndarray:
    """Clips [B, M] drawn with replacement; the same for every candidate, so that differences can be paired."""
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle `LEVEL` % of bootstrap values [B]."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a right clip is worth more than a wrong one; ties count half."""
    ranks = rankdata(np.concatenate([right, wrong]))
    return float((ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def basin(places: np.ndarray, rewards: np.ndarray) -> float:
    """How far the reward leads back to its top: where its slope falls below `DEAD` of the steepest, or reverses.

    Args:
        places: Deviations [S] from 0 on, growing evenly.
        rewards: Of them [S].
    """
    slope = -np.diff(rewards) / np.diff(places)
    steepest = int(np.argmax(slope))
    dead = np.flatnonzero(slope[steepest:] < DEAD * slope[steepest])
    return float(places[steepest + dead[0]] if len(dead) else places[-1])
