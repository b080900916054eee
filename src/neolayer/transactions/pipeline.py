"""From intent to sent: lease, simulate, price, sign, store the bytes, only then send.

A crash at any point leaves a row that another worker takes up when the lease ends:

* ``queued``: nothing was stored, so nothing was sent. It is prepared anew.
* ``signed``: bytes are stored and may or may not have been sent. The same bytes are sent again, which a node
  answers with "already there" (−501, −503) if it has them.

Bytes are stored by the holder of the lease only, so two workers never make two transactions of one intent.
"""

import asyncio
import contextlib
import logging
import random
import secrets
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.chain.errors import BadCall, WrongNetwork
from neolayer.chain.payload import Signer, UnsignedTransaction, signature_witness
from neolayer.chain.rpc import RpcClient, SendOutcome
from neolayer.core.errors import ServiceError
from neolayer.core.ids import uuid7
from neolayer.core.types import Hash256
from neolayer.db.notices import NoticeListener
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.enclave import Enclave
from neolayer.transactions.errors import FeeAboveCap, SimulationFaulted
from neolayer.transactions.pricing import Pricing
from neolayer.transactions.service import TOPIC
from neolayer.wallets.service import Wallets

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: Leases that ended are looked for this often when nothing wakes the workers; seconds.
IDLE_S: Final = 1.0
#: Between tries while something is down, doubled from the first to the second; seconds.
RETRY_S: Final = (0.25, 2.0)
#: These say something about the intent itself. Everything else may pass and is waited out.
FINAL_ERRORS: Final = (SimulationFaulted, FeeAboveCap, BadCall)


@dataclass(frozen=True, slots=True)
class _Leased:
    tenant_id: UUID
    id: UUID
    state: str
    tries: int
    script: bytes
    valid_for_blocks: int
    max_fee: int | None
    wallet_id: UUID
    #: Magic of the network it was accepted for; None when no node could be asked then.
    network: int | None


class Pipeline:
    """Takes due transactions, several at a time. Any number of processes may run one each."""

    def __init__(
        self,
        database: Database,
        enclave: Enclave,
        rpc: RpcClient,
        wallets: Wallets,
        pricing: Pricing,
        notices: NoticeListener,
        *,
        workers: int,
        lease_s: float,
    ) -> None:
        self._database = database
        self._enclave = enclave
        self._rpc = rpc
        self._wallets = wallets
        self._pricing = pricing
        self._workers = workers
        self._lease_s = lease_s
        self._owner = uuid7()
        self._wake = asyncio.Event()
        notices.on(TOPIC, lambda _: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                transaction = await self._lease()
            except ServiceError as error:
                _log.warning("no lease: %s", error.detail)
                await asyncio.sleep(RETRY_S[1])
                continue
            if transaction is not None:
                await self._advance(transaction)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()

    async def _lease(self) -> _Leased | None:
        row = await self._database.fetch_one(
            _SQL["lease"], {"owner": self._owner, "lease_s": self._lease_s, "limit": 1}
        )
        if row is None:
            return None
        tenant_id, id, state, tries, script, valid_for_blocks, max_fee, wallet_id, network = row
        return _Leased(tenant_id, id, state, tries, bytes(script), valid_for_blocks, max_fee, wallet_id, network)

    async def _advance(self, transaction: _Leased) -> None:
        """Bring it as far as it goes now. Never raises: what fails is postponed, rejected or left to the lease."""
        state = transaction.state
        try:
            if state == "queued":
                if not await self._prepare(transaction):
                    return
                state = "signed"
            await self._send(transaction, maybe_sent_before=transaction.state == "signed")
        except ServiceError as error:
            cause = {"code": error.code, "message": error.detail}
            try:
                if state == "queued" and isinstance(error, FINAL_ERRORS):
                    await self._change(transaction, "queued", "rejected", cause)
                else:
                    await self._postpone(transaction, state, cause)
            except ServiceError as failure:
                _log.warning("transaction %s is left to its lease: %s", transaction.id, failure.detail)
        except Exception:
            _log.exception("transaction %s is left to its lease", transaction.id)

    async def _prepare(self, transaction: _Leased) -> bool:
        """Simulate, price, sign and store; False when the lease was lost meanwhile."""
        wallet = await self._wallets.get(transaction.tenant_id, transaction.wallet_id)
        version = await self._rpc.version()
        if transaction.network not in (None, version.network):
            raise WrongNetwork(f"accepted for network {transaction.network}, the node is of {version.network}")
        price, _ = await self._pricing.price(wallet, transaction.script, transaction.max_fee)
        unsigned = UnsignedTransaction(
            nonce=secrets.randbits(32),
            system_fee=price.system_fee,
            network_fee=price.network_fee,
            valid_until_block=price.height
            + min(transaction.valid_for_blocks, version.max_valid_until_block_increment),
            signers=(Signer(wallet.script_hash),),
            script=transaction.script,
        )
        signature = await self._enclave.sign_transaction(
            str(wallet.tenant_id), str(wallet.id), wallet.sealed_key, version.network, unsigned.data
        )
        raw = unsigned.with_witnesses([signature_witness(signature.signature, wallet.public_key)])
        stored = await self._database.execute(
            _SQL["store_signed"],
            {
                "tenant_id": transaction.tenant_id,
                "id": transaction.id,
                "owner": self._owner,
                "txid": unsigned.hash.data,
                "network": version.network,
                "raw": raw,
                "valid_until_block": unsigned.valid_until_block,
                "system_fee": unsigned.system_fee,
                "network_fee": unsigned.network_fee,
            },
        )
        return stored == 1

    async def _send(self, transaction: _Leased, *, maybe_sent_before: bool) -> None:
        """Send the stored bytes.

        ``maybe_sent_before``: an earlier lease, of ours or of a worker that died, may have sent them without
        hearing the answer, so a refusal now does not prove that no node has them. Only the chain can tell then,
        at ``valid_until_block``.
        """
        row = await self._database.fetch_one(_SQL["attempt"], _key(transaction))
        assert row is not None
        raw, txid, network = bytes(row[0]), Hash256(bytes(row[1])), row[2]
        if network != (await self._rpc.version()).network:
            raise WrongNetwork(f"signed for network {network}")
        height = (await self._pricing.policy()).height
        # When no answer comes this raises, and the next lease finds the state `signed`.
        outcome = await self._rpc.send_raw_transaction(raw)
        ambiguous = maybe_sent_before or outcome.ambiguous
        if outcome.kind == "rejected" and ambiguous and await self._rpc.knows(txid):
            outcome = SendOutcome("accepted")
        match outcome.kind:
            case "accepted":
                async with self._database.transaction() as connection:
                    await connection.execute(_SQL["mark_sent"], {"txid": txid.data, "height": height})
                    await connection.execute(
                        _SQL["change_state"],
                        _key(transaction) | {"from": "signed", "state": "sent", "cause": None},
                    )
            case "rejected" if not ambiguous:
                cause = {"code": "rejected_by_node", "message": outcome.message, "node_code": outcome.node_code}
                await self._change(transaction, "signed", "rejected", cause)
            case kind:
                code = {"funds": "waiting_for_gas", "retry": "mempool_full"}.get(kind, kind)
                cause = {"code": code, "message": outcome.message, "node_code": outcome.node_code}
                await self._postpone(transaction, "signed", cause)

    async def _change(self, transaction: _Leased, before: str, state: str, cause: dict[str, Any]) -> None:
        await self._database.execute(
            _SQL["change_state"], _key(transaction) | {"from": before, "state": state, "cause": _json(cause)}
        )

    async def _postpone(self, transaction: _Leased, state: str, cause: dict[str, Any]) -> None:
        first, last = RETRY_S
        delay_s = min(last, first * 2 ** min(transaction.tries, 10)) * random.uniform(0.5, 1)  # noqa: S311 - jitter
        await self._database.execute(
            _SQL["postpone"], _key(transaction) | {"state": state, "delay_s": delay_s, "cause": _json(cause)}
        )


def _key(transaction: _Leased) -> dict[str, Any]:
    return {"tenant_id": transaction.tenant_id, "id": transaction.id}


def _json(cause: dict[str, Any]) -> str:
    return msgspec.json.encode(cause).decode()
