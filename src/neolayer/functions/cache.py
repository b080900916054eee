"""Which bundle a call runs, in memory.

Entries live `TTL_S` at most and go at once when a notice says that the tenant's functions or secrets changed.
A lookup that began before a notice arrived must not put back what the notice dropped, hence the generation.
"""

import math
import random
import time
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from neolayer.functions.model import Bundle

TTL_S: Final = 5.0
MAX_ENTRIES: Final = 10_000


class Choice:
    """The bundles of an alias, picked by weight.

    A round of as many picks as the weights' sum holds each bundle as often as its weight says, in an order that
    was shuffled once. So shares are exact after few calls, where independent draws would take thousands. Where a
    round begins is random: an alias that is called once per look-up gets its shares, too.
    """

    __slots__ = ("_at", "_round")

    def __init__(self, shares: Sequence[tuple[Bundle, int]]) -> None:
        divisor = math.gcd(*(weight for _, weight in shares))
        self._round = [bundle for bundle, weight in shares for _ in range(weight // divisor)]
        self._at = 0
        if len(self._round) > 1:
            random.shuffle(self._round)
            self._at = random.randrange(len(self._round))  # noqa: S311 - shares, no secret

    def pick(self) -> Bundle:
        self._at = at = (self._at + 1) % len(self._round)
        return self._round[at]


class BundleCache:
    def __init__(self) -> None:
        #: By tenant and by what is called: a name, or a name with `@` and alias or version.
        self._entries: dict[UUID, dict[str, tuple[float, Choice]]] = {}
        self._size = 0
        self.generation = 0

    def get(self, tenant_id: UUID, target: str) -> Bundle | None:
        """What this call runs; another call may get another version."""
        targets = self._entries.get(tenant_id)
        if targets is None:
            return None
        entry = targets.get(target)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1].pick()

    def put(self, tenant_id: UUID, target: str, choice: Choice, generation: int) -> None:
        """``generation``: what it was before the tables were read."""
        if generation != self.generation:
            return
        if self._size >= MAX_ENTRIES:
            self.drop("")
        targets = self._entries.setdefault(tenant_id, {})
        self._size += target not in targets
        targets[target] = (time.monotonic() + TTL_S, choice)

    def drop(self, tenant: str) -> None:
        """Forget a tenant, or everything when ``tenant`` is empty."""
        self.generation += 1
        if tenant:
            self._size -= len(self._entries.pop(UUID(tenant), {}))
        else:
            self._entries.clear()
            self._size = 0
