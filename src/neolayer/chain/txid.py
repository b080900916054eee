"""The hash of a transaction that is there only as bytes: where its unsigned part ends."""

import hashlib
from typing import Final

from neolayer.core.types import Hash256

#: version, nonce, system fee, network fee, valid_until_block.
_FIXED_BYTES: Final = 1 + 4 + 8 + 8 + 4
_CUSTOM_CONTRACTS: Final = 0x10
_CUSTOM_GROUPS: Final = 0x20
_RULES: Final = 0x40
#: Bytes of the attributes' content by type (neo-go `transaction/attribute.go`): HighPriority, NotValidBefore,
#: Conflicts, NotaryAssisted. OracleResponse has a length of its own.
_ATTRIBUTE_BYTES: Final = {0x01: 0, 0x20: 4, 0x21: 32, 0x22: 1}
_ORACLE_RESPONSE: Final = 0x11
#: Conditions of witness rules (neo-go `transaction/witness_condition.go`) by type.
_CONDITION_BYTES: Final = {0x00: 1, 0x18: 20, 0x19: 33, 0x20: 0, 0x28: 20, 0x29: 33}
_NOT: Final = 0x01
_AND_OR: Final = (0x02, 0x03)


def hash_of_raw(raw: bytes) -> Hash256:
    """SHA-256 of everything before the witnesses.

    Raises:
        ValueError: it is not a transaction.
    """
    reader = _Reader(raw)
    reader.skip(_FIXED_BYTES)
    for _ in range(reader.var_int()):
        _skip_signer(reader)
    for _ in range(reader.var_int()):
        _skip_attribute(reader)
    reader.skip(reader.var_int())
    return Hash256(hashlib.sha256(raw[: reader.position]).digest())


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def skip(self, count: int) -> bytes:
        skipped = self._data[self.position : self.position + count]
        if len(skipped) != count:
            raise ValueError("the transaction is cut")
        self.position += count
        return skipped

    def byte(self) -> int:
        return self.skip(1)[0]

    def var_int(self) -> int:
        first = self.byte()
        return first if first < 0xFD else int.from_bytes(self.skip({0xFD: 2, 0xFE: 4, 0xFF: 8}[first]), "little")


def _skip_signer(reader: _Reader) -> None:
    reader.skip(20)
    scopes = reader.byte()
    if scopes & _CUSTOM_CONTRACTS:
        reader.skip(20 * reader.var_int())
    if scopes & _CUSTOM_GROUPS:
        reader.skip(33 * reader.var_int())
    if scopes & _RULES:
        for _ in range(reader.var_int()):
            reader.byte()  # allow or deny
            _skip_condition(reader, depth=0)


def _skip_condition(reader: _Reader, depth: int) -> None:
    if depth > 3:
        raise ValueError("conditions are nested too deeply")
    kind = reader.byte()
    if kind == _NOT:
        _skip_condition(reader, depth + 1)
    elif kind in _AND_OR:
        for _ in range(reader.var_int()):
            _skip_condition(reader, depth + 1)
    elif kind in _CONDITION_BYTES:
        reader.skip(_CONDITION_BYTES[kind])
    else:
        raise ValueError(f"no such condition: {kind}")


def _skip_attribute(reader: _Reader) -> None:
    kind = reader.byte()
    if kind == _ORACLE_RESPONSE:
        reader.skip(8 + 1)
        reader.skip(reader.var_int())
    elif kind in _ATTRIBUTE_BYTES:
        reader.skip(_ATTRIBUTE_BYTES[kind])
    else:
        raise ValueError(f"no such attribute: {kind}")
