"""Medians, ratios and their confidence intervals."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 5_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the bounds of its 95 % bootstrap interval."""

    middle: float
    low: float
    high: float

    def format(self, pattern: str = "{:.2f}") -> str:
        return f"{pattern.format(self.middle)} [{pattern.format(self.low)}, {pattern.format(self.high)}]"


def median(samples: Sequence[float], seed: int = 1) -> Interval:
    """The median of rounds."""
    return _bootstrap(samples, statistics.median, seed)


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 1) -> Interval:
    """The median of the ratios round by round: rounds are interleaved, so drift cancels out."""
    return median([a / b for a, b in zip(ours, theirs, strict=True)], seed)


def _bootstrap(samples: Sequence[float], statistic: Callable[[Sequence[float]], float], seed: int) -> Interval:
    generator = random.Random(seed)  # noqa: S311 - resampling
    drawn = sorted(statistic(generator.choices(samples, k=len(samples))) for _ in range(RESAMPLES))
    return Interval(statistic(samples), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)])
