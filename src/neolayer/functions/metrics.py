"""Prometheus metrics of executions."""

from typing import Final

from prometheus_client import Counter, Gauge

from neolayer.enclave import Result
from neolayer.observability.tally import TalliedCounter, TalliedHistogram

WALL: Final = TalliedHistogram(
    "neolayer_execution_wall_seconds",
    "Time in the enclave from arrival to result. Outcome: succeeded, or the error's code. Start: cold or warm.",
    ["outcome", "start"],
    (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE: Final = Gauge("neolayer_executions_queue", "Asynchronous executions: queued, running, dead.", ["state"])
CPU: Final = TalliedCounter("neolayer_execution_cpu_seconds", "CPU time spent in functions.")
UNWRITABLE: Final = Counter(
    "neolayer_execution_records_unwritable_total", "Execution records that the database refused."
)
UNWRITTEN: Final = Gauge("neolayer_execution_records_unwritten", "Execution records that wait to be written.")


def observe(outcome: str, result: Result) -> None:
    """Count one execution. ``outcome``: ``succeeded``, or the error's code."""
    WALL.of(outcome, "cold" if result.cold else "warm").observe(result.wall_us / 1e6)
    CPU.value += result.cpu_us / 1e6
