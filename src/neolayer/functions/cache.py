"""Which bundle a name stands for, in memory.

Entries live `TTL_S` at most and go at once when a notice says that the tenant's functions or secrets changed.
A lookup that began before a notice arrived must not put back what the notice dropped, hence the generation.
"""

import time
from typing import Final
from uuid import UUID

from neolayer.functions.model import Bundle

TTL_S: Final = 5.0
MAX_ENTRIES: Final = 10_000


class BundleCache:
    def __init__(self) -> None:
        self._entries: dict[UUID, dict[str, tuple[float, Bundle]]] = {}
        self._size = 0
        self.generation = 0

    def get(self, tenant_id: UUID, name: str) -> Bundle | None:
        names = self._entries.get(tenant_id)
        if names is None:
            return None
        entry = names.get(name)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1]

    def put(self, tenant_id: UUID, name: str, bundle: Bundle, generation: int) -> None:
        """``generation``: what it was before the tables were read."""
        if generation != self.generation:
            return
        if self._size >= MAX_ENTRIES:
            self.drop("")
        names = self._entries.setdefault(tenant_id, {})
        self._size += name not in names
        names[name] = (time.monotonic() + TTL_S, bundle)

    def drop(self, tenant: str) -> None:
        """Forget a tenant, or everything when ``tenant`` is empty."""
        self.generation += 1
        if tenant:
            self._size -= len(self._entries.pop(UUID(tenant), {}))
        else:
            self._entries.clear()
            self._size = 0
