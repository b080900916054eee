"""Counts on the hottest path, shown to Prometheus when it asks.

The library's own counters and histograms take a lock for each number, which on that path costs as much as checking
the API key. These are for one event loop only: nothing else may touch them.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import REGISTRY, Collector


class TalliedCounter(Collector):
    """A counter without labels. ``name`` without ``_total``."""

    def __init__(self, name: str, documentation: str) -> None:
        self.value = 0.0
        self._name, self._documentation = name, documentation
        REGISTRY.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, self.value)


class TalliedHistogram(Collector):
    """A histogram by labels. Keep what `of` returns: it is what is cheap."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._labels, self._bounds = labels, tuple(bounds)
        self._series: dict[tuple[str, ...], Series] = {}
        REGISTRY.register(self)

    def of(self, *values: str) -> "Series":
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Series(self._bounds)
        return series

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, series in self._series.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), series.counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric(values, buckets, series.sum)
        yield family


class Series:
    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        #: Of each bucket alone, the one above the last bound included.
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value
