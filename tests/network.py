"""A private network of several real nodes, each behind a proxy that stages faults. For tests and measurements."""

import asyncio
import subprocess
from pathlib import Path

import aiohttp

from neolayer.chain.devnet import Devnet
from tests.proxy import NodeProxy
from tests.system import free_port

START_TIMEOUT_S = 20.0


class NetworkNode:
    """The process of one node."""

    def __init__(self, rpc_port: int) -> None:
        #: Past the proxy.
        self.url = f"http://127.0.0.1:{rpc_port}"
        self.proxy = NodeProxy(self.url)
        self.rpc_port = rpc_port
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self, command: list[str]) -> None:
        """Start it and wait for its first answer."""
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                try:
                    await self.height()
                    return
                except aiohttp.ClientError:
                    assert self._process.poll() is None, f"the node ended with {self._process.returncode}"
                    await asyncio.sleep(0.05)

    def stop(self) -> None:
        """Cleanly: nothing that it has is lost."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    async def height(self) -> int:
        """Past the proxy."""
        return int(await self.call("getblockcount")) - 1

    async def call(self, method: str, *params: object) -> object:
        """Past the proxy and past our own client."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with aiohttp.ClientSession() as session, session.post(self.url, json=request) as response:
            answer = await response.json(content_type=None)
        assert "result" in answer, answer
        return answer["result"]


class Network:
    """One validator and followers that get its blocks by P2P."""

    def __init__(self, directory: Path, *, followers: int = 2, block_time: str = "500ms") -> None:
        self._directory = directory
        self._p2p_port = free_port()
        self.devnet = Devnet.open(
            directory / "validator", free_port(), p2p_port=self._p2p_port, settings={"TimePerBlock": block_time}
        )
        self.validator = NetworkNode(self.devnet.rpc_port)
        self.followers = [NetworkNode(free_port()) for _ in range(followers)]

    @property
    def nodes(self) -> list[NetworkNode]:
        return [self.validator, *self.followers]

    @property
    def urls(self) -> list[str]:
        """Of the proxies, the validator's first."""
        return [node.proxy.url for node in self.nodes]

    def node_of(self, url: str | None) -> NetworkNode:
        """That one behind the proxy with this URL."""
        return next(node for node in self.nodes if node.proxy.url == url)

    async def start(self) -> None:
        await self.validator.run(self.devnet.command)
        for node in self.followers:
            await self.join(node)
        for node in self.nodes:
            await node.proxy.start()
        await self.level()

    async def close(self) -> None:
        for node in self.nodes:
            await node.proxy.close()
            node.stop()

    async def join(self, node: NetworkNode) -> None:
        """Start a follower, or start it anew, with the validator as its peer."""
        await self._start(node, [self._p2p_port])

    async def cut(self, node: NetworkNode) -> None:
        """Start a follower anew without peers: it answers with the blocks it has and gets no others."""
        await self._start(node, [])

    async def _start(self, node: NetworkNode, peers: list[int]) -> None:
        node.stop()
        directory = self._directory / f"follower-{node.rpc_port}"
        await node.run(self.devnet.follower(directory, node.rpc_port, peers=peers))

    async def level(self) -> None:
        """Wait until all nodes have the validator's present block."""
        height = await self.validator.height()
        async with asyncio.timeout(30):
            for node in self.followers:
                while await node.height() < height:
                    await asyncio.sleep(0.05)

    async def heal(self) -> None:
        """End all faults of proxies."""
        for node in self.nodes:
            node.proxy.heal()
        await self.level()
