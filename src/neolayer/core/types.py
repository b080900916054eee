"""Value types that several rooms share."""

import re
from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from neolayer.core.errors import InvalidRequest

#: 1 GAS = 10⁸ datoshi (GasToken, 8 decimals).
DATOSHI_PER_GAS: Final = 100_000_000
_GAS: Final = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,8}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hash160:
    """An account or contract. Bytes are little endian, as on the wire; text is ``0x…`` big endian."""

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != 20:
            raise ValueError(f"a Hash160 has 20 bytes, not {len(self.data)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0x`` + 40 hex digits (the prefix may be missing).

        Raises:
            ValueError: anything else.
        """
        return cls(bytes.fromhex(_hex_digits(text, 40))[::-1])

    def __str__(self) -> str:
        return "0x" + self.data[::-1].hex()


@dataclass(frozen=True, slots=True)
class Hash256:
    """A transaction or block. Bytes are little endian, as on the wire; text is ``0x…`` big endian."""

    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != 32:
            raise ValueError(f"a Hash256 has 32 bytes, not {len(self.data)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``0x`` + 64 hex digits (the prefix may be missing).

        Raises:
            ValueError: anything else.
        """
        return cls(bytes.fromhex(_hex_digits(text, 64))[::-1])

    def __str__(self) -> str:
        return "0x" + self.data[::-1].hex()


def _hex_digits(text: str, count: int) -> str:
    digits = text.removeprefix("0x")
    if len(digits) != count:
        raise ValueError(f"expected 0x and {count} hex digits, got {text!r}")
    return digits


def gas_text(datoshi: int) -> str:
    """Datoshi as the decimal GAS string of the public API: ``150000000`` → ``"1.5"``."""
    sign, value = ("-", -datoshi) if datoshi < 0 else ("", datoshi)
    whole, part = divmod(value, DATOSHI_PER_GAS)
    return f"{sign}{whole}.{part:08d}".rstrip("0").rstrip(".")


def gas_parse(text: str, name: str = "") -> int:
    """A decimal GAS string as datoshi.

    Args:
        name: of the member that it was given as, for the error.

    Raises:
        InvalidRequest: not a plain decimal of below 10 billion with at most 8 decimals, or negative.
    """
    match = _GAS.fullmatch(text)
    if match is None:
        place = f"{name}: " if name else ""
        raise InvalidRequest(
            f"{place}{text[:40]!r} is not a GAS amount: expected a decimal like '1.5', below 10^10, "
            "at most 8 places"
        )
    return int(match[1]) * DATOSHI_PER_GAS + int((match[2] or "").ljust(8, "0"))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking: the tenant that an API key belongs to."""

    tenant_id: UUID
    key_id: UUID
