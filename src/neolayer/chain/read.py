"""Reading contracts: test-invocations that change nothing and cost nothing."""

from typing import Annotated, Any, Final

import msgspec

from neolayer.chain.errors import ExecutionFaulted
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import build_script
from neolayer.core.errors import InvalidRequest, MalformedJson
from neolayer.core.types import gas_text


class ResultUnreadable(InvalidRequest):
    """The contract's result is more than nodes write down: it holds itself, or is longer than 131,070 bytes."""

    code = "result_unreadable"


class ResultTooDeep(InvalidRequest):
    """The contract's result is nested too deeply to be shown."""

    code = "result_too_deep"


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call in Neo's parameter JSON."""

    contract: str
    method: str
    args: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)
    call_flags: str = "ReadOnly"
    #: Not to be answered from before this block: the one that confirmed a transaction, say.
    min_height: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None


class ReadResult(msgspec.Struct, frozen=True):
    #: The result as plain JSON: integers as decimal strings, byte strings as base64, structs as lists.
    value: Any
    #: The stack as the node gives it: ``[{type, value}]``.
    stack: list[Any]
    #: What the call would cost as part of a transaction; a GAS decimal.
    gas_consumed: str
    #: Index of the block on top of which it ran.
    height: int


_decode: Final = msgspec.json.Decoder(ReadRequest).decode


class Reader:
    def __init__(self, rpc: RpcClient) -> None:
        self._rpc = rpc

    async def read_json(self, request: bytes) -> ReadResult:
        """`read` for a running function."""
        try:
            decoded = _decode(request)
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error)) from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise MalformedJson(str(error)) from None
        return await self.read(decoded)

    async def read(self, request: ReadRequest) -> ReadResult:
        """
        Raises:
            BadCall: malformed.
            ExecutionFaulted: with the virtual machine's exception.
            NodeUnavailable: no node answers, or none has block ``min_height``.
        """
        call = {
            "contract": request.contract,
            "method": request.method,
            "args": request.args,
            "call_flags": request.call_flags,
        }
        script = build_script([call], assert_transfers=False)
        result, height = await self._rpc.invoke_at_head(script, min_height=request.min_height)
        if not result.halted:
            raise ExecutionFaulted(
                f"{request.method} ended in FAULT: {result.exception}", exception=result.exception
            )
        if not result.stack and result.exception is not None:
            raise ResultUnreadable(f"{request.method}: {result.exception}")
        try:
            value = plain(result.stack[0]) if result.stack else None
        except RecursionError:
            raise ResultTooDeep from None
        return ReadResult(value, result.stack, gas_text(result.gas_consumed), height)


def plain(item: dict[str, Any]) -> Any:
    """A stack item of Neo's JSON as plain JSON."""
    match item:
        case {"type": "Array" | "Struct", "value": list(items)}:
            return [plain(part) for part in items]
        case {"type": "Map", "value": list(pairs)}:
            return [[plain(pair["key"]), plain(pair["value"])] for pair in pairs]
        case {"type": "Any"}:
            return None
        case _:
            return item.get("value")
