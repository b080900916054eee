"""Chain data kept in memory: what is final for ever, what the newest block decides until the next one."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from neolayer.chain.metrics import KEPT_BYTES, SPARED

#: Dictionary slot, key object, tuple and bytes headers of an entry; bytes, rounded up.
_ENTRY_BYTES: Final = 300
#: Share of the room for answers that hold until the next block.
_HEAD_SHARE: Final = 0.25

type Call = tuple[str, Sequence[Any]]


class Kept:
    """Answers as bytes, within a number of bytes; the least recently used are dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._final: OrderedDict[bytes, tuple[bytes, str]] = OrderedDict()
        self._final_bytes = 0
        self._head: OrderedDict[bytes, bytes] = OrderedDict()
        self._head_bytes = 0
        self._head_height = -1
        self._head_heard_s = 0.0

    @property
    def size_bytes(self) -> int:
        return self._final_bytes + self._head_bytes

    # --- for ever ---

    def final(self, call: Call) -> bytes | None:
        key = _key(call)
        found = self._final.get(key)
        if found is None:
            return None
        self._final.move_to_end(key)
        SPARED.labels("kept").inc()
        return found[0]

    def keep_final(self, call: Call, value: bytes, node: str) -> None:
        """
        Args:
            node: who said it; see `forget`.
        """
        key = _key(call)
        size = _size(key, value)
        if key in self._final or size > self._max_bytes * (1 - _HEAD_SHARE):
            return
        self._final[key] = (value, node)
        self._final_bytes += size
        while self._final_bytes > self._max_bytes * (1 - _HEAD_SHARE):
            dropped, (old, _) = self._final.popitem(last=False)
            self._final_bytes -= _size(dropped, old)
        KEPT_BYTES.set(self.size_bytes)

    def forget(self, node: str) -> None:
        """It is not believed any more."""
        for key in [key for key, (_, teller) in self._final.items() if teller == node]:
            value, _ = self._final.pop(key)
            self._final_bytes -= _size(key, value)
        KEPT_BYTES.set(self.size_bytes)

    # --- until the next block ---

    def heard_height(self, height: int) -> None:
        """A node is at this height now."""
        if height > self._head_height:
            self._head.clear()
            self._head_bytes = 0
            self._head_height = height
        if height == self._head_height:
            self._head_heard_s = time.monotonic()

    def at_head(self, call: Call, *, min_height: int, max_age_s: float) -> tuple[bytes, int] | None:
        """The answer that the newest known block gives, and its index.

        Args:
            min_height: it must be this block or a later one.
            max_age_s: a node must have told within this time that it is still the newest.
        """
        if self._head_height < min_height or time.monotonic() - self._head_heard_s > max_age_s:
            return None
        found = self._head.get(_key(call))
        if found is None:
            return None
        SPARED.labels("kept").inc()
        return found, self._head_height

    def keep_at_head(self, call: Call, value: bytes, height: int) -> None:
        """An answer given at exactly this height."""
        key = _key(call)
        if height != self._head_height or key in self._head:
            return
        self._head[key] = value
        self._head_bytes += _size(key, value)
        while self._head_bytes > self._max_bytes * _HEAD_SHARE:
            dropped, old = self._head.popitem(last=False)
            self._head_bytes -= _size(dropped, old)
        KEPT_BYTES.set(self.size_bytes)


def _key(call: Call) -> bytes:
    method, params = call
    return msgspec.json.encode((method, params))


def _size(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + _ENTRY_BYTES
