"""The enclave as a process: start, stop, and what it leaves behind."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from neolayer_enclave.protocol import Hello, Identity, Statistics, Stats
from tests.enclave_process.host import Host, Process, output


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_says_what_it_is_when_it_listens(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path)
    assert enclave.ready["listening"] == str(enclave.socket)
    assert enclave.ready["provider"] == "simulated"
    assert enclave.ready["egress_allow_private"] is False
    host = await Host.connect(enclave)
    identity = await host.ask(Hello(), Identity)
    assert identity.measurement.hex() == enclave.ready["measurement"]
    await host.close()
    assert await enclave.stop() == 0


async def test_a_request_to_stop_ends_it_and_its_cells_at_once(tmp_path: Path) -> None:
    async def never(name: str, argument: Any) -> Any:
        await asyncio.sleep(60)

    enclave = await Process.start(tmp_path, "--spare", "0")
    host = await Host.connect(enclave)
    for tenant in ("a", "b"):
        await host.run("export default () => 1", tenant=tenant)
    spinning = asyncio.ensure_future(host.run("export default () => { for (;;); }", tenant="a", cpu_ms=10_000))
    waiting = asyncio.ensure_future(
        host.run("export default (i, ctx) => ctx.neo.read({})", tenant="b", host=never)
    )
    while (await host.ask(Stats(), Statistics)).running < 2:
        await asyncio.sleep(0.01)
    cells = enclave.cells()
    assert len(cells) == 2
    begun = time.monotonic()
    assert await enclave.stop() == 0
    assert time.monotonic() - begun < 2
    assert not enclave.socket.exists()
    assert not any(alive(pid) for pid in cells)
    for call in (spinning, waiting):
        error = (await call).error
        assert error is not None
        assert (error.code, error.retryable) == ("cell_crashed", True)
    await host.close()


async def test_its_cells_die_with_it(tmp_path: Path) -> None:
    enclave = await Process.start(tmp_path)
    host = await Host.connect(enclave)
    await host.run("export default () => 1")
    spinning = asyncio.ensure_future(host.run("export default () => { for (;;); }", cpu_ms=10_000))
    await asyncio.sleep(0.1)
    cells = enclave.cells()
    enclave.process.send_signal(signal.SIGKILL)
    await enclave.process.wait()
    await asyncio.wait([spinning])
    assert spinning.exception() is not None
    for _ in range(100):
        if not any(alive(pid) for pid in cells):
            break
        await asyncio.sleep(0.02)
    assert not any(alive(pid) for pid in cells)
    await host.close()


async def test_a_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "enclave.sock"))
    left.close()
    enclave = await Process.start(tmp_path)
    second = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "neolayer_enclave",
        "--socket",
        enclave.socket,
        "--state",
        tmp_path / "state",
        stderr=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    _, text = await asyncio.wait_for(second.communicate(), 10)
    assert second.returncode == 2
    assert b"another enclave listens there" in text
    assert text.count(b"\n") == 1
    host = await Host.connect(enclave)
    assert output(await host.run("export default () => 1")) == 1
    await host.close()
    assert await enclave.stop() == 0
