"""What a running function asks of the host: ``ctx.neo.read``, ``ctx.neo.wallet`` and ``ctx.neo.send``."""

from typing import Final, Protocol
from uuid import UUID

import msgspec

from neolayer.core.errors import InvalidRequest
from neolayer.core.types import Principal
from neolayer.enclave import HostFunction
from neolayer.wallets.service import Wallets

_encode: Final = msgspec.json.Encoder().encode


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

    def of_execution(self, principal: Principal, execution: UUID) -> HostFunction:
        """The host's side of one execution. Its n-th ``send`` has the same key however often it is run again."""
        sends = 0

        async def call(name: str, argument: bytes) -> bytes:
            nonlocal sends
            if name == "neo.read":
                return _encode(await self._reader.read_json(argument))
            if name == "neo.send":
                key, sends = f"execution:{execution}:{sends}", sends + 1
                return _encode(
                    await self._sender.submit_json(
                        principal, argument, idempotency_key=key, execution_id=execution
                    )
                )
            if name == "neo.wallet":
                wallet = await self._wallets.find(principal.tenant_id, _wallet_name(argument))
                return _encode(await self._wallets.view(wallet))
            raise InvalidRequest(f"the host has no function {name!r}")

        return call


def _wallet_name(argument: bytes) -> str:
    try:
        return msgspec.json.decode(argument or b'"default"', type=str)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"ctx.neo.wallet takes the name of a wallet: {error}") from None
