"""What keeps a node that fails from costing every caller a wait, and a busy one from being overrun."""

import asyncio
import random
from collections import deque
from typing import Final, Literal

#: Failures in a row that open it (`measuring`: "opens after ≤ 5 failures").
FAILURES: Final = 5
#: It also opens when half of at least twenty calls of the last minute failed, in a row or not.
RATE: Final = 0.5
RATE_SAMPLES: Final = 20
#: Before the first probe, and at most, doubled with every probe that fails; seconds.
PAUSE_S: Final = (1.0, 30.0)

type BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Of one node. Only timeouts and failures of transport count; what a node refuses with reason does not.

    Closed: calls go through. Open: none does. Half-open, after a pause: one probe decides.
    """

    def __init__(self) -> None:
        self._row = 0
        self._pause_s = PAUSE_S[0]
        self._opened_until: float | None = None

    @property
    def failures_in_a_row(self) -> int:
        return self._row

    def state(self, now_s: float) -> BreakerState:
        if self._opened_until is None:
            return "closed"
        return "open" if now_s < self._opened_until else "half_open"

    def succeeded(self) -> None:
        """Any usable answer closes it."""
        self._row = 0
        self._opened_until = None
        self._pause_s = PAUSE_S[0]

    def failed(self, now_s: float, *, failures: int, calls: int) -> None:
        """
        Args:
            failures, calls: of the last minute, this one included.
        """
        self._row += 1
        state = self.state(now_s)
        often = calls >= RATE_SAMPLES and failures >= RATE * calls
        if state == "half_open" or (state == "closed" and (self._row >= FAILURES or often)):
            # The jitter keeps processes from probing a node that comes back all at once.
            self._opened_until = now_s + self._pause_s * random.uniform(0.8, 1.2)  # noqa: S311
            self._pause_s = min(2 * self._pause_s, PAUSE_S[1])


#: At first; grows while it is used up and answers come.
INITIAL_LIMIT: Final = 32.0
#: What a sign of overload leaves of it, at most once in this time; seconds.
_SHRINK: Final = 0.7
_SHRINK_EVERY_S: Final = 0.25


class ConcurrencyLimit:
    """How many calls one node has at a time: additive increase, multiplicative decrease (RFC 5681's AIMD).

    Callers beyond the limit wait in order.
    """

    def __init__(self, maximum: int, *, adaptive: bool = True) -> None:
        self._maximum = maximum
        self._adaptive = adaptive
        self._limit = min(INITIAL_LIMIT, maximum) if adaptive else float(maximum)
        self._shrunk_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self.in_flight}/{self.limit} waiting={len(self._waiting)}>"

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def full(self) -> bool:
        return self.in_flight >= self.limit or bool(self._waiting)

    async def acquire(self) -> None:
        if not self.full:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever wakes us has counted us already
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        self.in_flight -= 1
        self._wake()

    def grow(self) -> None:
        """An answer came: one more for each limit's worth of answers, if the limit is what holds callers back."""
        if self._adaptive and self.in_flight >= self.limit - 1 and self._limit < self._maximum:
            self._limit = min(self._limit + 1 / self._limit, self._maximum)
            self._wake()

    def shrink(self, now_s: float) -> None:
        """The node is overloaded, or says so."""
        if self._adaptive and now_s - self._shrunk_at >= _SHRINK_EVERY_S:
            self._shrunk_at = now_s
            self._limit = max(1.0, self._limit * _SHRINK)

    def _wake(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
