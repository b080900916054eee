"""From leased intents to stored attempts: group, simulate, price, see that the wallet can pay, sign, store.

Everything is done for many at a time. What the simulation shows to fail is found by halving its group until it
stands alone: it alone is refused, or goes alone when it fails in company only.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from neolayer.chain.errors import RpcError
from neolayer.chain.fees import FeePolicy
from neolayer.chain.market import Speed
from neolayer.chain.payload import Signer, UnsignedTransaction, signature_witness, verification_script
from neolayer.chain.rpc import InvokeResult, RpcClient
from neolayer.core.errors import ServiceError
from neolayer.core.types import gas_text
from neolayer.enclave import Enclave
from neolayer.transactions.attempts import Attempt, Attempts, Rooms, Share, take
from neolayer.transactions.grouping import THROW_UNITS, joined, measured, metered, outcomes, packed, shares
from neolayer.transactions.pricing import Pricing, gas_moved_away
from neolayer.transactions.queue import Batch, Cause, Intent, Queue
from neolayer.wallets.service import Wallet, Wallets

_log = logging.getLogger(__name__)
#: A wallet that lacks GAS is looked at again after this time, if no block changes it before; seconds.
FUNDS_S: Final = 1.0
#: How much a group's mean of GAS a call counts against those before it.
_NEWEST: Final = 0.2


@dataclass(frozen=True, slots=True)
class Draft:
    """An on-chain transaction to be. Several intents are a group."""

    wallet: Wallet
    intents: tuple[Intent, ...]

    @property
    def grouped(self) -> bool:
        return len(self.intents) > 1

    @property
    def scripts(self) -> list[bytes]:
        return [intent.script for intent in self.intents]

    @property
    def script(self) -> bytes:
        return joined(self.scripts) if self.grouped else self.intents[0].script

    def halves(self) -> list["Draft"]:
        middle = len(self.intents) // 2
        return [Draft(self.wallet, self.intents[:middle]), Draft(self.wallet, self.intents[middle:])]


@dataclass(frozen=True, slots=True)
class Priced:
    """A draft that succeeded in the simulation; fees in datoshi."""

    draft: Draft
    script: bytes
    system_fee: int
    network_fee: int
    gas_out: int

    @property
    def cost(self) -> int:
        return self.system_fee + self.network_fee + self.gas_out


@dataclass(slots=True)
class Work:
    """One batch on its way."""

    batch: Batch
    network: int
    policy: FeePolicy
    #: Datoshi for each byte that each tier pays at least.
    rates: dict[Speed, int]
    rooms: Rooms
    rejected: list[tuple[Intent, Cause]] = field(default_factory=list)
    postponed: list[tuple[Intent, float, Cause | None]] = field(default_factory=list)
    #: Wallets that cannot pay for what is left.
    poor: dict[UUID, Wallet] = field(default_factory=dict)

    def give_back(self, intents: Iterable[Intent], delay_s: float = 0.0, cause: Cause | None = None) -> None:
        self.postponed += [(intent, delay_s, cause) for intent in intents]


class Preparer:
    def __init__(
        self,
        queue: Queue,
        attempts: Attempts,
        enclave: Enclave,
        rpc: RpcClient,
        wallets: Wallets,
        pricing: Pricing,
        *,
        grouping: bool,
        group_gas_max: int,
    ) -> None:
        """
        Args:
            group_gas_max: system fee of a group at most; datoshi. Below the node's MaxGasInvoke, or it cannot be
                simulated, and well below a block's MaxBlockSystemFee, or it waits for an empty block.
        """
        self._queue = queue
        self._attempts = attempts
        self._enclave = enclave
        self._rpc = rpc
        self._wallets = wallets
        self._pricing = pricing
        self.grouping = grouping
        self._group_gas_max = group_gas_max
        self._gas_per_call = 0.0

    async def prepare(self, batch: Batch, calls_wanted: int) -> list[Attempt]:
        """Bring a batch as far as it goes now; returns what was stored and is to be sent.

        Raises:
            ServiceError: node, enclave or database are away; the intents are still leased.
        """
        version, policy = await self._rpc.version(), await self._pricing.policy()
        intents = [one for one in batch.intents if one.network in (None, version.network)]
        wallets = {
            key[1]: await self._wallets.get(*key)
            for key in dict.fromkeys((one.tenant_id, one.wallet_id) for one in intents)
        }
        rooms = await self._attempts.rooms(list(wallets.values()), version.network) if wallets else {}
        rates = {speed: await self._pricing.rate(speed, policy.height) for speed in {one.speed for one in intents}}
        work = Work(batch, version.network, policy, rates, rooms)
        for intent in batch.intents:
            if intent.network not in (None, version.network):
                message = f"accepted for network {intent.network}, the node is of {version.network}"
                work.give_back([intent], FUNDS_S, {"code": "wrong_network", "message": message})
        drafts = list(self._drafts(intents, wallets, calls_wanted))
        affordable = self._affordable(work, await self._tried(work, drafts))
        attempts = await self._signed(
            work, await self._shared(work, affordable), version.max_valid_until_block_increment
        )
        stored = await self._attempts.store(batch.lease, attempts, rooms, version.network)
        kept = {attempt.txid for attempt in stored}
        for attempt in attempts:
            if attempt.txid not in kept:
                work.give_back(share.intent for share in attempt.shares)
        if work.poor:
            await self._attempts.wallets_wait(work.poor.values(), version.network, FUNDS_S)
        await self._queue.reject(batch.lease, work.rejected)
        await self._queue.postpone(batch.lease, work.postponed)
        return stored

    def _drafts(
        self, intents: Sequence[Intent], wallets: dict[UUID, Wallet], calls_wanted: int
    ) -> Iterable[Draft]:
        """Only what one wallet sends under the same terms is put together."""
        most = calls_wanted
        if self._gas_per_call:
            most = max(min(most, int(self._group_gas_max / self._gas_per_call)), 1)
        together: dict[tuple[UUID, int, Speed], list[Intent]] = {}
        for intent in intents:
            if self.grouping and intent.groupable:
                terms = intent.wallet_id, intent.valid_for_blocks, intent.speed
                together.setdefault(terms, []).append(intent)
            else:
                yield Draft(wallets[intent.wallet_id], (intent,))
        for (wallet_id, *_), members in together.items():
            rest = iter(members)
            for count in packed([len(one.script) for one in members], most):
                yield Draft(wallets[wallet_id], tuple(itertools.islice(rest, count)))

    # --- simulation ---------------------------------------------------------------------------------------------

    async def _tried(self, work: Work, drafts: list[Draft]) -> list[Priced]:
        """Simulate, and take apart what fails, until every part succeeds or stands alone."""
        priced: list[Priced] = []
        while drafts:
            scripts = [draft.script for draft in drafts]
            results = await self._rpc.invoke_scripts(
                [
                    (script, [Signer(draft.wallet.script_hash)])
                    for draft, script in zip(drafts, scripts, strict=True)
                ]
            )
            parts: list[Draft] = []
            for draft, script, result in zip(drafts, scripts, results, strict=True):
                if isinstance(result, RpcError):
                    if draft.grouped:
                        parts += draft.halves()
                    else:
                        work.give_back(draft.intents, FUNDS_S, {"code": result.code, "message": result.detail})
                    continue
                if not draft.grouped and not result.halted:
                    cause = {"code": "simulation_faulted", "message": f"the calls would FAULT: {result.exception}"}
                    work.rejected.append((draft.intents[0], cause))
                    continue
                apart = self._parts(draft, result) if draft.grouped else []
                if not apart:
                    one = self._priced(work, draft, script, result)
                    if draft.grouped and one.cost > work.rooms[draft.wallet.id].balance:
                        apart = draft.halves()  # the wallet may have enough for some
                    else:
                        priced.append(one)
                parts += apart
            drafts = parts
        return priced

    def _parts(self, draft: Draft, result: InvokeResult) -> list[Draft]:
        """What a group must be taken apart into; nothing when it may go as it is."""
        if not result.halted or result.gas_consumed > self._group_gas_max:
            return draft.halves()
        self._learn(result.gas_consumed / len(draft.intents))
        failed = [not one.succeeded for one in outcomes(result.stack)]
        if len(failed) != len(draft.intents):
            return draft.halves()  # together the results are more than the node writes down
        if not any(failed):
            return []
        well = tuple(one for one, bad in zip(draft.intents, failed, strict=True) if not bad)
        ill = [one for one, bad in zip(draft.intents, failed, strict=True) if bad]
        return [*([Draft(draft.wallet, well)] if well else []), *(Draft(draft.wallet, (one,)) for one in ill)]

    def _learn(self, gas_per_call: float) -> None:
        before = self._gas_per_call or gas_per_call
        self._gas_per_call = before + _NEWEST * (gas_per_call - before)

    def _priced(self, work: Work, draft: Draft, script: bytes, result: InvokeResult) -> Priced:
        unsigned = UnsignedTransaction(0, 0, 0, 0, (Signer(draft.wallet.script_hash),), script)
        rate = max(work.rates[intent.speed] for intent in draft.intents)
        fee = work.policy.network_fee(unsigned, [verification_script(draft.wallet.public_key)], rate=rate)
        out = gas_moved_away(result.notifications, draft.wallet.script_hash)
        # Whatever a simulation did not see must not use up the gas of all: there is enough for each call to throw.
        headroom = len(draft.intents) * work.policy.execution_fee(THROW_UNITS) if draft.grouped else 0
        return Priced(draft, script, result.gas_consumed + headroom, fee, out)

    def _affordable(self, work: Work, priced: list[Priced]) -> list[Priced]:
        """Those that fit into their wallets beside what is on its way; the others wait."""
        fitting = []
        for one in priced:
            wallet, room = one.draft.wallet, work.rooms[one.draft.wallet.id]
            if take(room, one.cost):
                fitting.append(one)
                continue
            work.poor[wallet.id] = wallet
            message = (
                f"wallet {wallet.name!r} ({wallet.address}) has {gas_text(room.balance)} GAS, "
                f"{gas_text(room.reserved)} of it for transactions on their way; this needs {gas_text(one.cost)}"
            )
            work.give_back(one.draft.intents, FUNDS_S, {"code": "waiting_for_gas", "message": message})
        return fitting

    # --- shares of the fees ------------------------------------------------------------------------------------

    async def _shared(self, work: Work, priced: list[Priced]) -> list[tuple[Priced, tuple[Share, ...]]]:
        """Divide the fees: what is burned by the gas that each call used, what validators get by bytes of script.

        An intent whose share is above its cap is refused; those it was grouped with go back into the queue.
        """
        groups = [one for one in priced if one.draft.grouped]
        results = await self._rpc.invoke_scripts(
            [(metered(one.draft.scripts), [Signer(one.draft.wallet.script_hash)]) for one in groups]
        )
        used = {
            id(one): measured(result.stack)
            if not isinstance(result, RpcError) and result.halted
            else [1] * len(one.draft.intents)
            for one, result in zip(groups, results, strict=True)
        }
        found = []
        for one in priced:
            intents = one.draft.intents
            system = shares(one.system_fee, used.get(id(one), [1]))
            network = shares(one.network_fee, [len(intent.script) for intent in intents])
            parts = tuple(map(Share, intents, system, network))
            above = [part for part in parts if _above_cap(part)]
            if not above:
                found.append((one, parts))
                continue
            for part in above:
                fee, cap, paid = part.system_fee + part.network_fee, part.intent.max_fee, part.intent.paid
                assert cap is not None
                message = f"it would cost {gas_text(fee + paid)} GAS, max_fee is {gas_text(cap)}"
                if paid:
                    message += f"; {gas_text(paid)} of it were paid for a group that failed"
                work.rejected.append((part.intent, {"code": "fee_above_cap", "message": message}))
            work.give_back(part.intent for part in parts if not _above_cap(part))
        return found

    # --- signatures -------------------------------------------------------------------------------------------

    async def _signed(
        self, work: Work, drafts: list[tuple[Priced, tuple[Share, ...]]], max_increment: int
    ) -> list[Attempt]:
        by_wallet: dict[UUID, list[tuple[Priced, tuple[Share, ...], UnsignedTransaction]]] = {}
        for priced, parts in drafts:
            blocks = min(priced.draft.intents[0].valid_for_blocks, max_increment)
            unsigned = UnsignedTransaction(
                nonce=secrets.randbits(32),
                system_fee=priced.system_fee,
                network_fee=priced.network_fee,
                valid_until_block=work.policy.height + blocks,
                signers=(Signer(priced.draft.wallet.script_hash),),
                script=priced.script,
            )
            by_wallet.setdefault(priced.draft.wallet.id, []).append((priced, parts, unsigned))
        signed = await asyncio.gather(*(self._sign(work, many) for many in by_wallet.values()))
        return [attempt for attempts in signed for attempt in attempts]

    async def _sign(
        self, work: Work, many: list[tuple[Priced, tuple[Share, ...], UnsignedTransaction]]
    ) -> list[Attempt]:
        wallet = many[0][0].draft.wallet
        try:
            signatures = await self._enclave.sign_transactions(
                str(wallet.tenant_id),
                str(wallet.id),
                wallet.sealed_key,
                work.network,
                [unsigned.data for _, _, unsigned in many],
            )
        except ServiceError as error:
            # Of this wallet: what is wrong with its key is no matter of the others'.
            for _, parts, _ in many:
                cause = {"code": error.code, "message": error.detail}
                work.give_back((part.intent for part in parts), FUNDS_S, cause)
            return []
        return [
            Attempt(
                txid=unsigned.hash.data,
                raw=unsigned.with_witnesses([signature_witness(signature, wallet.public_key)]),
                wallet=wallet,
                grouped=priced.draft.grouped,
                valid_until_block=unsigned.valid_until_block,
                height=work.policy.height,
                system_fee=unsigned.system_fee,
                network_fee=unsigned.network_fee,
                gas_out=priced.gas_out,
                shares=parts,
            )
            for (priced, parts, unsigned), signature in zip(many, signatures, strict=True)
        ]

    async def postpone(self, batch: Batch, error: ServiceError, delay_s: float) -> None:
        """Give a whole batch back because a part of the system is away."""
        cause = {"code": error.code, "message": error.detail}
        await self._queue.postpone(batch.lease, [(intent, delay_s, cause) for intent in batch.intents])


def _above_cap(part: Share) -> bool:
    cap = part.intent.max_fee
    return cap is not None and part.intent.paid + part.system_fee + part.network_fee > cap
