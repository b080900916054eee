"""What a transaction costs, and whether it would succeed: simulation, fees, balance."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neolayer.chain.fees import FeePolicy, Fees
from neolayer.chain.market import FeeMarket, Speed
from neolayer.chain.payload import Signer, UnsignedTransaction, parse_account, verification_script
from neolayer.chain.rpc import InvokeResult, RpcClient
from neolayer.chain.scripts import GAS, parse_contract
from neolayer.core.types import Hash160, gas_text
from neolayer.transactions.errors import FeeAboveCap, InsufficientGas, SimulationFaulted
from neolayer.wallets.service import Wallet

#: Any value does: these fields have a fixed width, so they change neither size nor fee.
_ANY: Final = 0


@dataclass(frozen=True, slots=True)
class Price:
    """What a transaction costs at a height; datoshi."""

    height: int
    system_fee: int
    network_fee: int

    @property
    def total(self) -> int:
        return self.system_fee + self.network_fee


class Pricing:
    def __init__(self, rpc: RpcClient, fees: Fees, market: FeeMarket) -> None:
        self._rpc = rpc
        self._fees = fees
        self._market = market

    async def policy(self) -> FeePolicy:
        """Fees and height, at most one block time old."""
        return await self._fees.policy()

    async def rate(self, speed: Speed, height: int) -> int:
        """Datoshi for each byte that a tier pays at least, see `FeeMarket.rate`."""
        return await self._market.rate(speed, height)

    async def network(self) -> int:
        """Magic of the node's network."""
        return (await self._rpc.version()).network

    async def price(
        self, wallet: Wallet, script: bytes, max_fee: int | None, speed: Speed
    ) -> tuple[Price, InvokeResult]:
        """Try the script out with the wallet as its signer.

        The system fee is exactly what the simulation used: all of it is burned, so a margin costs money.

        Raises:
            SimulationFaulted: with the virtual machine's exception.
            FeeAboveCap: more than ``max_fee`` datoshi.
            NodeUnavailable: no node answers.
        """
        signer = Signer(wallet.script_hash)
        result = await self._rpc.invoke_script(script, [signer])
        if not result.halted:
            raise SimulationFaulted(
                f"the calls would FAULT: {result.exception}", exception=result.exception, vmstate=result.state
            )
        policy = await self._fees.policy()
        unsigned = UnsignedTransaction(
            nonce=_ANY,
            system_fee=_ANY,
            network_fee=_ANY,
            valid_until_block=_ANY,
            signers=(signer,),
            script=script,
        )
        rate = await self.rate(speed, policy.height)
        network_fee = policy.network_fee(unsigned, [verification_script(wallet.public_key)], rate=rate)
        price = Price(policy.height, result.gas_consumed, network_fee)
        if max_fee is not None and price.total > max_fee:
            raise FeeAboveCap(
                f"it would cost {gas_text(price.total)} GAS, max_fee is {gas_text(max_fee)}",
                fee=gas_text(price.total),
                max_fee=gas_text(max_fee),
            )
        return price, result

    async def preflight(
        self, wallet: Wallet, script: bytes, max_fee: int | None, speed: Speed, *, gas_asked: int = 0
    ) -> Price:
        """`price`, and whether the wallet can pay for it.

        Fees are taken before the script runs, so GAS that the script moves away must be there beside them.

        Args:
            gas_asked: datoshi that the calls say they move out of the wallet: when that alone is too much, the
                simulation ends in an ASSERT, which tells people little.

        Raises:
            InsufficientGas: it cannot.
        """
        # At once, as neither needs the other's answer.
        priced = asyncio.create_task(self.price(wallet, script, max_fee, speed))
        try:
            balance = await self._rpc.balance_of(GAS, wallet.script_hash)
            needed, beside = gas_asked, " and the fees"
            if balance >= needed:
                price, result = await priced
                needed, beside = price.total + gas_moved_away(result.notifications, wallet.script_hash), ""
                if balance >= needed:
                    return price
        finally:
            priced.cancel()
            await asyncio.gather(priced, return_exceptions=True)
        raise InsufficientGas(
            f"wallet {wallet.name!r} ({wallet.address}) has {gas_text(balance)} GAS, "
            f"needs {gas_text(needed)}{beside}",
            balance=gas_text(balance),
            needed=gas_text(needed),
        )


def gas_asked(calls: Sequence[Mapping[str, Any]], account: Hash160) -> int:
    """Datoshi that plain GAS transfers among well-formed calls take out of an account."""
    asked = 0
    for call in calls:
        args = call.get("args", [])
        if call["method"] == "transfer" and len(args) == 4 and parse_contract(call["contract"]) == GAS:
            sender, _, amount, _ = (argument.get("value") for argument in args)
            if isinstance(sender, str) and parse_account(sender) == account:
                asked += int(amount)
    return asked


def gas_moved_away(notifications: list[Any], account: Hash160) -> int:
    """Net datoshi that the NEP-17 ``Transfer`` notifications of GAS take from an account."""
    moved = 0
    for notification in notifications:
        if notification.get("eventname") != "Transfer" or notification.get("contract") != str(GAS):
            continue
        sender, receiver, amount = notification["state"]["value"]
        if _is_account(sender, account):
            moved += int(amount["value"])
        if _is_account(receiver, account):
            moved -= int(amount["value"])
    return max(moved, 0)


def _is_account(item: dict[str, Any], account: Hash160) -> bool:
    return item.get("value") is not None and base64.b64decode(item["value"]) == account.data
