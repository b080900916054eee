"""A contract of ours on a private network, whose manifest a test chooses and may replace."""

import base64
import json
from typing import Any

from neo3.contracts.nef import NEF
from neo3.vm import OpCode, ScriptBuilder, Syscalls

from neolayer.chain.scripts import NATIVE_CONTRACTS, build_script
from neolayer.core.types import Hash160

from .conftest import Node

MANAGEMENT = NATIVE_CONTRACTS["ContractManagement"]
#: Drops an argument.
DROP = bytes([OpCode.DROP])
ONE = bytes([OpCode.PUSH1, OpCode.RET])


def _update() -> bytes:
    """``update(nef, manifest)``: hands its arguments to ContractManagement."""
    builder: Any = ScriptBuilder()  # type: ignore[no-untyped-call]
    builder.emit(OpCode.PUSH2)
    builder.emit(OpCode.PACK)
    builder.emit_push(15)
    builder.emit_push("update")
    builder.emit_push(MANAGEMENT.data)
    builder.emit_syscall(Syscalls.SYSTEM_CONTRACT_CALL)
    builder.emit(OpCode.RET)
    return bytes(builder.to_array())


def method(name: str, *types: str, safe: bool = False) -> dict[str, Any]:
    """Of a manifest; it takes so many arguments and returns 1."""
    parameters = [{"name": f"p{index}", "type": type_} for index, type_ in enumerate(types)]
    return {"name": name, "parameters": parameters, "returntype": "Integer", "safe": safe, "offset": 0}


def compiled(name: str, *methods: dict[str, Any]) -> list[dict[str, Any]]:
    """NEF and manifest, as arguments of ``deploy`` and ``update``."""
    script = _update()
    update = method("update", "ByteArray", "String") | {"returntype": "Any"}
    placed = [update]
    for wanted in methods:
        placed.append(wanted | {"offset": len(script)})
        script += DROP * len(wanted["parameters"]) + ONE
    manifest = {
        "name": name,
        "groups": [],
        "features": {},
        "supportedstandards": [],
        "abi": {"methods": placed, "events": []},
        "permissions": [{"contract": "*", "methods": "*"}],
        "trusts": [],
        "extra": None,
    }
    return [
        {"type": "ByteArray", "value": base64.b64encode(NEF("tests", script).to_array()).decode()},
        {"type": "String", "value": json.dumps(manifest)},
    ]


async def deploy(node: Node, name: str, *methods: dict[str, Any]) -> Hash160:
    """Returns when it is in a block."""
    call = {"contract": str(MANAGEMENT), "method": "deploy", "args": compiled(name, *methods)}
    log = await node.devnet.wait(node.rpc, await node.devnet.send(node.rpc, build_script([call])))
    assert log.halted
    deployed = next(event for event in log.notifications if event["eventname"] == "Deploy")
    return Hash160(base64.b64decode(deployed["state"]["value"][0]["value"]))


async def update(node: Node, contract: Hash160, name: str, *methods: dict[str, Any]) -> None:
    """Replace its code and manifest; returns when that is in a block."""
    call = {"contract": str(contract), "method": "update", "args": compiled(name, *methods)}
    log = await node.devnet.wait(node.rpc, await node.devnet.send(node.rpc, build_script([call])))
    assert log.halted
