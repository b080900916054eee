"""How fast a warm call is through the enclave's socket, beside the same function in bare isolated-vm.

Run: ``python -m tests.enclave_process.measure``. Not a test: figures belong to one run on one machine.
"""

import asyncio
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

import uvloop

from neolayer_enclave import protocol
from neolayer_enclave.__main__ import bundled_node
from neolayer_enclave.protocol import HEADER, HEADER_AFTER_LENGTH, Kind
from tests.enclave_process.host import EXECUTION, HANDLES, Host, Process

SOURCE: Final = "export default async function (input, ctx) { return { hello: input.name, n: input.n + 1 }; }"
INPUT: Final = b'{"name":"x","n":1}'
CALLS: Final = 40_000


class Load(asyncio.Protocol):
    """A host as lean as can be: the same frame again and again, replies only counted."""

    transport: asyncio.Transport

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._partial = bytearray()

    async def run(self, calls: int, in_flight: int) -> float:
        """Calls per second."""
        self._sent, self._done, self._calls = 0, 0, calls
        self._over = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        self.transport.write(b"".join(self._frame() for _ in range(in_flight)))
        await self._over
        return calls / (time.perf_counter() - begun)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._partial += data
        at, frames = 0, []
        while len(self._partial) - at >= HEADER.size:
            length, kind, _ = HEADER.unpack_from(self._partial, at)
            if len(self._partial) < at + 4 + length:
                break
            assert kind == Kind.RESULT
            at += 4 + length
            self._done += 1
            if self._sent < self._calls:
                frames.append(self._frame())
        del self._partial[:at]
        self.transport.write(b"".join(frames))
        if self._done == self._calls:
            self._over.set_result(None)

    def _frame(self) -> bytes:
        self._sent += 1
        return HEADER.pack(HEADER_AFTER_LENGTH + len(self._body), Kind.INVOKE, self._sent) + self._body


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        enclave = await Process.start(Path(folder))
        host = await Host.connect(enclave)
        cold = []
        for tenant in range(10):
            bundle = await host.load(SOURCE, tenant=f"cold-{tenant}")
            begun = time.perf_counter()
            await host.invoke(bundle, {"name": "x", "n": 1})
            cold.append(time.perf_counter() - begun)
        isolate = []
        for _ in range(20):
            bundle = await host.load(SOURCE)
            begun = time.perf_counter()
            await host.invoke(bundle, {"name": "x", "n": 1})
            isolate.append(time.perf_counter() - begun)
        print(f"first call, new cell     p50 {statistics.median(cold) * 1e3:.1f} ms")
        print(f"first call, new isolate  p50 {statistics.median(isolate[1:]) * 1e3:.1f} ms")
        body = protocol.encode_invoke(HANDLES[bundle], 0, EXECUTION.bytes, INPUT)
        _, load = await asyncio.get_running_loop().create_unix_connection(lambda: Load(body), str(enclave.socket))
        await load.run(1_000, 1)
        for in_flight in (1, 16, 64):
            rates = [await load.run(CALLS if in_flight > 1 else CALLS // 10, in_flight) for _ in range(3)]
            rate = statistics.median(rates)
            print(f"warm, {in_flight:3} in flight    {rate:8,.0f} calls/s   {in_flight / rate * 1e3:.3f} ms each")
        await host.close()
        await enclave.stop()
    node = bundled_node()
    assert node
    bare = Path(__file__).with_name("bare.mjs")
    subprocess.run([node, "--no-node-snapshot", bare], check=True)  # noqa: ASYNC221


if __name__ == "__main__":
    uvloop.run(main())
