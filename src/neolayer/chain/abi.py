"""What a contract's manifest says of its methods, and whether a call fits it."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neolayer.chain.errors import BadArgument, BadCallFlags, UnknownMethod
from neolayer.chain.scripts import CALL_FLAGS, Call, parse_call_flags
from neolayer.core.types import Hash160

#: What a call may give for each type of a manifest (neo-go `smartcontract/param_type.go`), beside the type itself.
#: The virtual machine has bytes only, so that these say the same in another spelling.
_ALSO: Final[Mapping[str, frozenset[str]]] = {
    "Boolean": frozenset(),
    "Integer": frozenset(),
    "String": frozenset({"ByteArray", "ByteString"}),
    "ByteArray": frozenset({"ByteString", "String", "Hash160", "Hash256", "PublicKey", "Signature"}),
    "Hash160": frozenset({"ByteArray", "ByteString"}),
    "Hash256": frozenset({"ByteArray", "ByteString"}),
    "PublicKey": frozenset({"ByteArray", "ByteString"}),
    "Signature": frozenset({"ByteArray", "ByteString"}),
    "Array": frozenset(),
    "Map": frozenset(),
    "InteropInterface": frozenset(),
}
#: Null is a value of these; the virtual machine has no number and no truth value that is null.
_NULLABLE: Final = _ALSO.keys() - {"Boolean", "Integer", "Signature"}
#: Of types that have one, when they are given as plain bytes.
_BYTES: Final[Mapping[str, int]] = {"Hash160": 20, "Hash256": 32, "PublicKey": 33, "Signature": 64}
_EFFECTS: Final = CALL_FLAGS["WriteStates"] | CALL_FLAGS["AllowNotify"]


@dataclass(frozen=True, slots=True)
class Method:
    #: Name and type of each, as the manifest has them.
    parameters: tuple[tuple[str, str], ...]
    #: Changes nothing and notifies of nothing, whatever the flags allow.
    safe: bool


@dataclass(frozen=True, slots=True)
class Contract:
    """A deployed contract's callable side."""

    hash: Hash160
    name: str
    #: Times that its code and manifest were replaced.
    update_counter: int
    #: By name, then by number of arguments: a name may stand for several.
    methods: Mapping[str, Mapping[int, Method]]

    @classmethod
    def from_json(cls, reply: Mapping[str, Any]) -> "Contract":
        """As `getcontractstate` gives it."""
        manifest = reply["manifest"]
        methods: dict[str, dict[int, Method]] = {}
        for method in manifest["abi"]["methods"]:
            parameters = tuple((part["name"], part["type"]) for part in method["parameters"])
            methods.setdefault(method["name"], {})[len(parameters)] = Method(parameters, bool(method["safe"]))
        return cls(Hash160.parse(reply["hash"]), manifest["name"], reply["updatecounter"], methods)

    @property
    def size(self) -> int:
        """Methods and parameters, of which each takes some 200 bytes of memory."""
        return sum(1 + len(method.parameters) for named in self.methods.values() for method in named.values())

    def check(self, call: Call, path: str) -> None:
        """Refuse a well-formed call that the contract cannot take.

        Args:
            path: where the call stands, as in ``calls[0]``.

        Raises:
            UnknownMethod: no method of this name takes so many arguments.
            BadArgument: an argument is of another type than the manifest's.
            BadCallFlags: they allow no effect to a method that is not ``safe``.
        """
        name, args = call["method"], call.get("args", [])
        named = self.methods.get(name)
        if named is None:
            raise UnknownMethod(f"{path}.method: {self.name} ({self.hash}) has no method {name!r}")
        method = named.get(len(args))
        if method is None:
            counts = " or ".join(str(count) for count in sorted(named))
            raise UnknownMethod(f"{path}.args: {self.name}.{name} takes {counts} arguments, not {len(args)}")
        for index, (argument, (parameter, type_)) in enumerate(zip(args, method.parameters, strict=True)):
            if (wrong := _misfit(argument, type_)) is not None:
                raise BadArgument(f"{path}.args[{index}]: {parameter!r} of {self.name}.{name} {wrong}")
        flags = call.get("call_flags", "All")
        if not method.safe and not parse_call_flags(flags, f"{path}.call_flags") & _EFFECTS:
            raise BadCallFlags(
                f"{path}.call_flags: {self.name}.{name} is not safe: it needs WriteStates or AllowNotify, "
                f"which {flags} does not allow"
            )


def _misfit(argument: Mapping[str, Any], expected: str) -> str | None:
    """Why an argument is not of the manifest's type; None when it is."""
    given, value = argument["type"], argument.get("value")
    if expected not in _ALSO:  # Any
        return None
    if value is None and given != "Integer":
        return None if expected in _NULLABLE else f"is of type {expected}, which null is not"
    if given == expected:
        return None
    if given not in _ALSO[expected]:
        return f"is of type {expected}, not {given}"
    return _bytes_misfit(value, given, expected)


def _bytes_misfit(value: Any, given: str, expected: str) -> str | None:
    if given not in ("ByteArray", "ByteString"):
        return None
    try:
        data = base64.b64decode(value, validate=True)
        if expected == "String":
            data.decode()
    except (binascii.Error, UnicodeDecodeError):
        return "is of type String, and these bytes are no UTF-8"
    length = _BYTES.get(expected, len(data))
    return None if len(data) == length else f"is of type {expected}: {length} bytes, not {len(data)}"


def check_calls(calls: Sequence[Call], contracts: Sequence[Contract | None]) -> None:
    """`Contract.check` for calls and the contract of each, None where only the simulation can tell.

    What comes after the ``update`` of a contract in the same transaction meets another manifest, so it passes.

    Raises:
        UnknownMethod, BadArgument, BadCallFlags: see there.
    """
    updated: set[Hash160] = set()
    for index, (call, contract) in enumerate(zip(calls, contracts, strict=True)):
        if contract is None or contract.hash in updated:
            continue
        contract.check(call, f"calls[{index}]")
        if call["method"] == "update":
            updated.add(contract.hash)
