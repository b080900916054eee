"""What a running function asks of the host: ``ctx.neo.read``, ``neo.wallet``, ``neo.send``, ``ctx.invoke``."""

import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest
from neolayer.core.types import Principal
from neolayer.enclave import HostFunction
from neolayer.functions.errors import CallOver
from neolayer.functions.model import Budget, Call
from neolayer.wallets.service import Wallets

_encode: Final = msgspec.json.Encoder().encode
#: Calls of functions by functions that one execution may cause, itself and through others: with a depth of 8
#: nothing else would bound them.
MAX_NESTED: Final = 128

#: Runs another function for a call: gets the JSON request, the name of the new call's effects and the budget.
type Nested = Callable[[Call, bytes, str, Budget], Awaitable[bytes]]


class Reader(Protocol):
    """Test-invokes a contract."""

    async def read_json(self, request: bytes) -> msgspec.Struct: ...


class Sender(Protocol):
    """Enqueues a transaction."""

    async def submit_json(
        self, principal: Principal, request: bytes, *, idempotency_key: str, execution_id: UUID
    ) -> msgspec.Struct: ...


class HostCalls:
    def __init__(self, reader: Reader, wallets: Wallets, sender: Sender) -> None:
        self._reader = reader
        self._wallets = wallets
        self._sender = sender

    def of_call(self, call: Call, nested: Nested) -> HostFunction:
        """The host's side of one execution.

        Its n-th ``send`` has the same key however often it is run again, and so has the m-th of the n-th function
        that it calls.
        """
        sends = invokes = 0
        budget = call.budget

        async def serve(name: str, argument: bytes) -> bytes:
            nonlocal sends, invokes, budget
            if call.depth and time.monotonic() > call.deadline:
                # Its caller was told `timeout`: nothing must happen after that.
                raise CallOver
            if name == "neo.read":
                return _encode(await self._reader.read_json(argument))
            if name == "neo.send":
                key, sends = f"execution:{call.effects or call.id}:{sends}", sends + 1
                return _encode(
                    await self._sender.submit_json(
                        call.principal, argument, idempotency_key=key, execution_id=call.id
                    )
                )
            if name == "neo.wallet":
                wallet = await self._wallets.find(call.principal.tenant_id, _wallet_name(argument))
                return _encode(await self._wallets.view(wallet))
            if name == "functions.invoke":
                effects, invokes = f"{call.effects or call.id}/{invokes}", invokes + 1
                budget = budget or Budget(MAX_NESTED)
                return await nested(call, argument, effects, budget)
            raise InvalidRequest(f"the host has no function {name!r}")

        return serve


def _wallet_name(argument: bytes) -> str:
    try:
        return msgspec.json.decode(argument or b'"default"', type=str)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"ctx.neo.wallet takes the name of a wallet: {error}") from None
