"""A real neo-go node of a private network for every test that needs one; blocks come four times a second."""

import asyncio
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from neolayer.chain.devnet import Devnet
from neolayer.chain.errors import NodeUnavailable
from neolayer.chain.fees import Fees
from neolayer.chain.payload import (
    Attribute,
    Signer,
    UnsignedTransaction,
    account_of,
    signature_witness,
    verification_script,
)
from neolayer.chain.rpc import PoolOptions, RpcClient
from neolayer.core.types import Hash160
from tests.network import Network


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """The process of a private network, and a client of it."""

    def __init__(self, directory: Path, *, block_ms: int = 250, **settings: Any) -> None:
        """``settings``: of the network's protocol."""
        settings |= {"TimePerBlock": f"{block_ms}ms"}
        self.devnet = Devnet.open(directory, free_port(), settings=settings)
        self.rpc = RpcClient([self.devnet.rpc_url], timeout_s=5)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            self.devnet.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.rpc.block_count()
                    return
                except NodeUnavailable:
                    assert self._process.poll() is None, "the node ended"
                    await asyncio.sleep(0.02)

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def close(self) -> None:
        self.kill()
        await self.rpc.aclose()

    async def reach(self, height: int) -> None:
        async with asyncio.timeout(20):
            while await self.rpc.block_count() <= height:
                await asyncio.sleep(0.05)

    async def next_block(self) -> int:
        """Wait until a block was just made; returns its index."""
        height = await self.rpc.block_count()
        await self.reach(height)
        return height


class Key:
    """A single-signature account whose key the test holds."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.public = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.verification = verification_script(self.public)
        self.account: Hash160 = account_of(self.verification)
        self.signer = Signer(self.account)

    def sign(self, transaction: UnsignedTransaction, network: int) -> bytes:
        r, s = decode_dss_signature(
            self.private.sign(transaction.signing_data(network), ec.ECDSA(hashes.SHA256()))
        )
        return transaction.with_witnesses([signature_witness(r.to_bytes(32) + s.to_bytes(32), self.public)])


async def build(
    rpc: RpcClient,
    key: Key,
    script: bytes,
    *,
    system_fee: int | None = None,
    network_fee: int | None = None,
    valid_until_block: int | None = None,
    attributes: tuple[Attribute, ...] = (),
) -> UnsignedTransaction:
    """Price a transaction as the service does; what is given is taken as it is."""
    policy = await Fees(rpc).policy()
    if system_fee is None:
        result = await rpc.invoke_script(script, [key.signer])
        assert result.halted, result.exception
        system_fee = result.gas_consumed
    until = policy.height + 20 if valid_until_block is None else valid_until_block
    nonce = secrets.randbits(32)
    if network_fee is None:
        unpriced = UnsignedTransaction(nonce, system_fee, 0, until, (key.signer,), script, attributes)
        network_fee = policy.network_fee(unpriced, [key.verification])
    return UnsignedTransaction(nonce, system_fee, network_fee, until, (key.signer,), script, attributes)


NewNode = Callable[..., Awaitable[Node]]


@pytest.fixture(scope="session")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """One node for all tests that leave it as they found it."""
    node = Node(tmp_path_factory.mktemp("devnet"))
    try:
        await node.start()
        yield node
    finally:
        await node.close()


@pytest.fixture(scope="session")
async def rpc(node: Node) -> RpcClient:
    return node.rpc


@pytest.fixture
async def new_node(tmp_path: Path) -> AsyncIterator[NewNode]:
    """Starts nodes of networks that belong to one test, which may kill them."""
    nodes: list[Node] = []

    async def start(*, block_ms: int = 250, **settings: Any) -> Node:
        node = Node(tmp_path / f"devnet-{len(nodes)}", block_ms=block_ms, **settings)
        nodes.append(node)
        await node.start()
        return node

    yield start
    for node in nodes:
        await node.close()


@pytest.fixture(scope="session")
async def rich(node: Node) -> Key:
    """An account with 1,000 GAS."""
    key = Key()
    funding = await node.devnet.fund(node.rpc, key.account, 1000 * 10**8)
    assert (await node.devnet.wait(node.rpc, funding)).halted
    return key


@pytest.fixture(scope="session")
async def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    network = Network(tmp_path_factory.mktemp("network"), block_time="250ms")
    try:
        await network.start()
        yield network
    finally:
        await network.close()


@pytest.fixture
async def network(three_nodes: Network) -> AsyncIterator[Network]:
    """A validator and two followers, each behind a proxy; whole again after the test."""
    yield three_nodes
    await three_nodes.heal()


type NewClient = Callable[..., RpcClient]


@pytest.fixture
async def client_of() -> AsyncIterator[NewClient]:
    """Makes clients that are closed after the test. Options are those of `PoolOptions`."""
    clients: list[RpcClient] = []

    def make(urls: Sequence[str], *, timeout_s: float = 5.0, **options: Any) -> RpcClient:
        clients.append(RpcClient(urls, timeout_s=timeout_s, options=PoolOptions(**options)))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()
