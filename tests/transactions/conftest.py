"""The room's parts on a real database, node and enclave, without the processes around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs

from neolayer.accounts.service import ensure_tenant
from neolayer.app import Parts, build_monitor, build_parts, build_pipeline
from neolayer.chain.scripts import GAS, transfer
from neolayer.core.settings import Settings
from neolayer.core.types import Hash160
from neolayer.transactions.model import TransactionRequest, TransactionView
from neolayer.transactions.monitor import Monitor
from neolayer.transactions.pipeline import Pipeline
from neolayer.wallets.service import Wallet
from tests.chain.conftest import Node, new_node, node, rich, rpc
from tests.enclave_process.conftest import enclave
from tests.enclave_process.host import Process
from tests.proxy import NodeProxy

__all__ = ["enclave", "new_node", "node", "rich", "rpc"]


@dataclass
class Room:
    parts: Parts
    node: Node
    tenant_id: UUID
    wallet: Wallet
    monitor: Monitor = field(init=False)

    def __post_init__(self) -> None:
        self.monitor = build_monitor(self.parts)

    def pipeline(self, **settings: Any) -> Pipeline:
        """A worker process's, with settings of its own."""
        return build_pipeline(replace(self.parts, settings=structs.replace(self.parts.settings, **settings)))

    async def submit(self, to: Hash160, datoshi: int, **settings: Any) -> TransactionView:
        request = TransactionRequest(calls=[dict(transfer(GAS, self.wallet.script_hash, to, datoshi))], **settings)
        return (await self.parts.transactions.submit(self.tenant_id, request))[0]

    async def show(self, view: TransactionView) -> TransactionView:
        return await self.parts.transactions.show(self.tenant_id, view.id)

    async def states(self, view: TransactionView) -> list[str]:
        return [event.state for event in await self.parts.transactions.events(self.tenant_id, view.id)]


@pytest.fixture
def database_url(migrated_url: str) -> str:
    """No test of this room needs an empty database."""
    return migrated_url


@asynccontextmanager
async def room_on(
    node: Node, enclave: Process, database_url: str, valkey_url: str, *rpc_urls: str
) -> AsyncIterator[Room]:
    """A tenant with a funded wallet; reaches the node by ``rpc_urls``, or directly."""
    settings = Settings(
        database_url=database_url,
        valkey_url=valkey_url,
        rpc_urls=rpc_urls or (node.devnet.rpc_url,),
        enclave_socket=enclave.socket,
        rpc_timeout_s=2,
        lease_s=5.0,
        resend_after_blocks=3,
    )
    async with build_parts(settings) as parts:
        tenant_id = await ensure_tenant(parts.database, "test")
        wallet = await parts.wallets.create(tenant_id, "default")
        await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet.script_hash, 100 * 10**8))
        yield Room(parts, node, tenant_id, wallet)


@pytest.fixture
async def room(node: Node, enclave: Process, database_url: str, valkey_url: str) -> AsyncIterator[Room]:
    async with room_on(node, enclave, database_url, valkey_url) as room:
        yield room


@pytest.fixture
async def proxy(node: Node) -> AsyncIterator[NodeProxy]:
    """Stands before the node and stages faults."""
    proxy = NodeProxy(node.devnet.rpc_url)
    await proxy.start()
    yield proxy
    await proxy.close()
