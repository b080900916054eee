"""Identifiers."""

import random
import time
from uuid import UUID

from neolayer.core.errors import NotFound


def parse_id(text: str, missing: type[NotFound], what: str) -> UUID:
    """An id out of a path: what is no UUID is nobody's id.

    Raises:
        NotFound: ``missing``, with a message that names it.
    """
    try:
        return UUID(text)
    except ValueError:
        raise missing(f"no {what} {text[:100]!r}") from None


def uuid7() -> UUID:
    """A UUIDv7 (RFC 9562 §5.7): 48 bit Unix time in ms, then random bits; sorts by time of creation.

    An id is no secret, so its bits need not come from the operating system each time: that is a system call.
    """
    bits = random.getrandbits(80)  # seeded from the system at start, anew after a fork
    value = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | bits
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)
