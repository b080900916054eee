"""What the calls of a group have in common, pushed once: the sender, the contract, the method's name.

Blocks are bounded in bytes, and of the 90 of a transfer 54 are the same in all transfers of a wallet. Values that
repeat are put into static fields at the script's beginning, and every use becomes an instruction of one or two
bytes. Only values that cannot be changed are shared, numbers and byte strings, so a call sees what it would see
alone.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

#: Bytes of the operand of each instruction with one that `build_script` writes: PUSHINT8 to PUSHINT256, SYSCALL.
_OPERANDS: Final = {0x00: 1, 0x01: 2, 0x02: 4, 0x03: 8, 0x04: 16, 0x05: 32, 0x41: 4}
#: PUSHDATA1, 2 and 4: bytes of the length in front of the data.
_LENGTHS: Final = {0x0C: 1, 0x0D: 2, 0x0E: 4}
#: PUSHT, PUSHF, PUSHNULL, PUSHM1 to PUSH16, ASSERT, DROP, PACKMAP, PACK, NEWARRAY0.
_BARE: Final = frozenset({0x08, 0x09, 0x0B, *range(0x0F, 0x21), 0x39, 0x45, 0xBE, 0xC0, 0xC2})
_SYSCALL: Final = 0x41
_INITSSLOT: Final = b"\x56"
#: LDSFLD0 and STSFLD0, which six more of one byte follow; LDSFLD and STSFLD with the number as operand.
_LOAD_FIRST, _STORE_FIRST, _LOAD, _STORE = 0x58, 0x60, 0x5F, 0x67
_SHORT_FIELDS: Final = 7
_MOST_FIELDS: Final = 255


def shared(scripts: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """What to put before all of them, and the scripts as they are after it. Together they are never longer.

    Args:
        scripts: of calls, as `build_script` makes them; if one has other instructions all stay as they are.
    """
    split = [_instructions(script) for script in scripts]
    uses = Counter(one for parts in split if parts for one in parts if len(one) > 1 and one[0] != _SYSCALL)
    fields: dict[bytes, bytes] = {}
    head = b""
    saved = -2  # INITSSLOT
    for value, count in sorted(uses.items(), key=lambda item: (-len(item[0]) * item[1], item[0])):
        number = len(fields)
        load, store = _field(number, _LOAD_FIRST, _LOAD), _field(number, _STORE_FIRST, _STORE)
        saving = count * (len(value) - len(load)) - len(value) - len(store)
        if saving > 0 and number < _MOST_FIELDS:
            fields[value] = load
            head += value + store
            saved += saving
    if saved <= 0 or None in split:
        return b"", list(scripts)
    return _INITSSLOT + bytes([len(fields)]) + head, [
        b"".join(fields.get(one, one) for one in parts or ()) for parts in split
    ]


def _field(number: int, first: int, general: int) -> bytes:
    return bytes([first + number]) if number < _SHORT_FIELDS else bytes([general, number])


def _instructions(script: bytes) -> list[bytes] | None:
    """Null when there is one among them that `build_script` does not write."""
    found, at = [], 0
    while at < len(script):
        code, end = script[at], at + 1
        if code in _OPERANDS:
            end += _OPERANDS[code]
        elif code in _LENGTHS:
            end += _LENGTHS[code]
            end += int.from_bytes(script[at + 1 : end], "little")
        elif code not in _BARE:
            return None
        if end > len(script):
            return None
        found.append(script[at:end])
        at = end
    return found
