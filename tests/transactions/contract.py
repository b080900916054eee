"""A contract on the private network that works, throws or aborts, as a switch in its storage says."""

import base64
import json
from typing import Any

from neo3.contracts.nef import NEF
from neo3.vm import OpCode, ScriptBuilder, Syscalls

from neolayer.chain.scripts import NATIVE_CONTRACTS, build_script
from neolayer.core.types import Hash160
from tests.chain.conftest import Node

THROW, ABORT = 1, 2


def _mode() -> bytes:
    """``mode(n)``: from now on `touch` throws or aborts."""
    builder: Any = ScriptBuilder()  # type: ignore[no-untyped-call]
    builder.emit_push("mode")
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET_CONTEXT)
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_PUT)
    builder.emit(OpCode.RET)
    return bytes(builder.to_array())


def _touch() -> bytes:
    """``touch(key)``: writes under the key, and only then works, throws or aborts."""
    builder: Any = ScriptBuilder()  # type: ignore[no-untyped-call]
    builder.emit(OpCode.PUSH1)
    builder.emit(OpCode.SWAP)
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET_CONTEXT)
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_PUT)
    builder.emit_push("mode")
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET_CONTEXT)
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET)
    throw = bytes([OpCode.PUSHDATA1, 4]) + b"boom" + bytes([OpCode.THROW])
    works = bytes([OpCode.DROP, OpCode.PUSH1, OpCode.RET])
    is_throw = bytes([OpCode.DUP, OpCode.PUSH1, OpCode.NUMEQUAL, OpCode.JMPIF, 3, OpCode.ABORT]) + throw
    is_null = bytes([OpCode.DUP, OpCode.ISNULL, OpCode.JMPIF, 2 + len(is_throw)])
    return bytes(builder.to_array()) + is_null + is_throw + works


def _has() -> bytes:
    """``has(key)``: what is written under the key, or null."""
    builder: Any = ScriptBuilder()  # type: ignore[no-untyped-call]
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET_CONTEXT)
    builder.emit_syscall(Syscalls.SYSTEM_STORAGE_GET)
    builder.emit(OpCode.RET)
    return bytes(builder.to_array())


def _large() -> bytes:
    """``large(any)``: 100,000 bytes, which are more than nodes write down."""
    return (
        bytes([OpCode.DROP, OpCode.PUSHINT32])
        + (100_000).to_bytes(4, "little")
        + bytes([OpCode.NEWBUFFER, OpCode.RET])
    )


class Switched:
    def __init__(self, node: Node, hash: Hash160) -> None:
        self.node = node
        self.hash = hash

    @classmethod
    async def deploy(cls, node: Node, name: str) -> "Switched":
        """Returns when it is in a block. Two of one name are one contract."""
        script, methods = b"", []
        for method, body, type_, returns in (
            ("mode", _mode(), "Integer", "Void"),
            ("touch", _touch(), "String", "Integer"),
            ("has", _has(), "String", "Any"),
            ("large", _large(), "String", "Any"),
        ):
            methods.append(
                {
                    "name": method,
                    "parameters": [{"name": "of", "type": type_}],
                    "returntype": returns,
                    "offset": len(script),
                    "safe": method in ("has", "large"),
                }
            )
            script += body
        manifest = {
            "name": name, "groups": [], "features": {}, "supportedstandards": [],
            "abi": {"methods": methods, "events": []},
            "permissions": [{"contract": "*", "methods": "*"}], "trusts": [], "extra": None,
        }  # fmt: skip
        nef = base64.b64encode(NEF("tests", script).to_array()).decode()
        args = [{"type": "ByteArray", "value": nef}, {"type": "String", "value": json.dumps(manifest)}]
        call = {"contract": str(NATIVE_CONTRACTS["ContractManagement"]), "method": "deploy", "args": args}
        log = await node.devnet.wait(node.rpc, await node.devnet.send(node.rpc, build_script([call])))
        deployed = next(event for event in log.notifications if event["eventname"] == "Deploy")
        return cls(node, Hash160(base64.b64decode(deployed["state"]["value"][0]["value"])))

    def touch(self, key: str) -> dict[str, Any]:
        """A call for an intent."""
        return {"contract": str(self.hash), "method": "touch", "args": [{"type": "String", "value": key}]}

    async def set_mode(self, mode: int) -> None:
        call = {
            "contract": str(self.hash),
            "method": "mode",
            "args": [{"type": "Integer", "value": str(mode)}],
        }
        await self.node.devnet.wait(
            self.node.rpc, await self.node.devnet.send(self.node.rpc, build_script([call]))
        )

    async def touched(self, key: str) -> bool:
        call = {"contract": str(self.hash), "method": "has", "args": [{"type": "String", "value": key}]}
        result = await self.node.rpc.invoke_script(build_script([call]))
        assert result.halted, result.exception
        return result.stack[0]["type"] != "Any"
