"""A private network of one node that counts the JSON-RPC calls it answers: 1 s blocks of 512 transactions."""

import collections
import json
import re
from pathlib import Path
from typing import Final

import aiohttp
import psutil
from tests.chain.conftest import Node, free_port

#: Calls that the node has answered, by method in lower case; each call of a batch counts.
_COUNT: Final = re.compile(r"^neogo_rpc_(\w+)_time_count (\d+)", re.MULTILINE)


class MeteredNode(Node):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, block_ms=1000)
        config = self.devnet.directory / "config.yml"
        content = json.loads(config.read_text())
        port = free_port()
        content["ApplicationConfiguration"]["Prometheus"] = {"Enabled": True, "Addresses": [f"127.0.0.1:{port}"]}
        config.write_text(json.dumps(content))
        self._metrics = f"http://127.0.0.1:{port}/metrics"

    async def calls(self) -> collections.Counter[str]:
        """Since the node's start. The difference of two is what came between."""
        async with aiohttp.request("GET", self._metrics) as response:
            text = await response.text()
        return collections.Counter({method: int(count) for method, count in _COUNT.findall(text)})

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)
