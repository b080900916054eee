"""How long answers take and how many fail, over the last minute and without a cliff at its end."""

import math
from typing import Final

#: The last minute in slices: the oldest one is dropped every ten seconds.
SLICES: Final = 6
SLICE_S: Final = 10.0
#: Weight of the newest sample.
ALPHA: Final = 0.2
#: Buckets grow by a tenth, so a quantile is off by at most 5 % (the idea of DDSketch); from 0.1 ms to 6 min.
_FIRST_S: Final = 1e-4
_GROWTH: Final = math.log(1.1)
_BUCKETS: Final = 160


class _Slices[T]:
    """What `new` makes, one for each of the last slices of time."""

    def __init__(self) -> None:
        self._slices: list[tuple[int, T]] = []

    def new(self) -> T:
        raise NotImplementedError

    def now(self, time_s: float) -> T:
        number = int(time_s / SLICE_S)
        if not self._slices or self._slices[-1][0] != number:
            self._slices = [*self.live(time_s), (number, self.new())]
        return self._slices[-1][1]

    def live(self, time_s: float) -> list[tuple[int, T]]:
        oldest = int(time_s / SLICE_S) - SLICES
        return [entry for entry in self._slices if entry[0] > oldest]


class Latency(_Slices[list[int]]):
    """Of one method at one node. Recording costs the same whatever was recorded before."""

    def __init__(self) -> None:
        super().__init__()
        #: Exponentially weighted mean; seconds. None before the first answer.
        self.ewma_s: float | None = None

    def new(self) -> list[int]:
        return [0] * (_BUCKETS + 1)  # the last one counts all

    def observe(self, seconds: float, time_s: float) -> None:
        self.ewma_s = seconds if self.ewma_s is None else self.ewma_s + ALPHA * (seconds - self.ewma_s)
        index = int(math.log(max(seconds, _FIRST_S) / _FIRST_S) / _GROWTH)
        buckets = self.now(time_s)
        buckets[min(index, _BUCKETS - 1)] += 1
        buckets[-1] += 1

    def count(self, time_s: float) -> int:
        """Of the last minute."""
        return sum(buckets[-1] for _, buckets in self.live(time_s))

    def quantile(self, share: float, time_s: float, *, samples: int = 1) -> float | None:
        """Seconds; None with fewer ``samples`` in the last minute."""
        totals = [sum(column) for column in zip(*(buckets for _, buckets in self.live(time_s)), strict=True)]
        count = totals.pop() if totals else 0
        if count < samples:
            return None
        rank, seen = share * (count - 1), 0
        for index, total in enumerate(totals):
            seen += total
            if seen > rank:
                return _FIRST_S * math.exp((index + 0.5) * _GROWTH)
        return None


class Outcomes(_Slices[list[int]]):
    """Answers and failures of one node."""

    def new(self) -> list[int]:
        return [0, 0]

    def answered(self, time_s: float) -> None:
        self.now(time_s)[0] += 1

    def failed(self, time_s: float) -> None:
        self.now(time_s)[1] += 1

    def counts(self, time_s: float) -> tuple[int, int]:
        """Answers and failures of the last minute."""
        live = self.live(time_s)
        return sum(counts[0] for _, counts in live), sum(counts[1] for _, counts in live)

    def error_rate(self, time_s: float) -> float:
        """From 0 to 1; 0 without samples."""
        answers, failures = self.counts(time_s)
        return failures / (answers + failures) if answers + failures else 0.0
