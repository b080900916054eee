"""A function as the host loaded it."""

import os
import re
from dataclasses import dataclass, replace
from typing import Final, Self

import msgspec

from neolayer_enclave import egress
from neolayer_enclave.protocol import HANDLE_BYTES, Limits

_json: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A function as it was loaded, ready for a cell."""

    tenant: str
    name: str
    #: Says whether another `Load` of the same name has the same content.
    digest: bytes
    #: What the host calls it by.
    handle: bytes
    #: First part of the cell's LOAD frame.
    head: bytes
    source: bytes
    limits: Limits
    patterns: list[egress.Pattern]

    @classmethod
    def make(
        cls,
        tenant: str,
        name: str,
        digest: bytes,
        *,
        shown: str,
        source: str,
        limits: Limits,
        secrets: dict[str, str],
        patterns: list[egress.Pattern],
        isolation: str = "version",
    ) -> Self:
        """``shown`` becomes the file name in stack traces."""
        handle = os.urandom(HANDLE_BYTES)
        head = _json(
            {
                "handle": handle.hex(),
                "file": f"{re.sub(r'[^\w.-]', '_', shown)}.js",
                "secrets": _json(secrets).decode(),
                "limits": plain(limits),
                "isolation": isolation,
            }
        )
        head = len(head).to_bytes(4, "little") + head
        return cls(tenant, name, digest, handle, head, source.encode(), limits, patterns)

    def name_only(self) -> "Bundle":
        """Without its source and secrets."""
        return replace(self, head=b"", source=b"")

    @property
    def size(self) -> int:
        return len(self.head) + len(self.source)


def plain(limits: Limits) -> dict[str, int]:
    """As the cell's frames have them."""
    return {"timeout_ms": limits.timeout_ms, "cpu_ms": limits.cpu_ms, "memory_mb": limits.memory_mb}
