"""The host's client: lost, stuck and restarted enclaves are clear errors, and nothing waits for ever."""

import asyncio
import os
import signal
from uuid import UUID

import pytest
import uvloop

from neolayer.enclave import EnclaveClient, EnclaveUnavailable, Limits, Load, OutcomeUnknown
from neolayer_enclave.protocol import Result
from tests.enclave_process.conftest import own_enclave
from tests.enclave_process.host import Process

__all__ = ["own_enclave"]


async def no_host(name: str, argument: bytes) -> bytes:
    raise AssertionError("no host call was expected")


async def run(client: EnclaveClient, source: str, *, timeout_ms: int = 10_000) -> Result:
    bundle = source[-20:]
    await client.load(Load("tenant", bundle, "test", source, Limits(timeout_ms=timeout_ms), [], []))
    return await client.invoke(bundle, UUID(int=1), b"", no_host, timeout_ms=timeout_ms)


async def test_an_enclave_that_is_not_there_is_unavailable(own_enclave: Process) -> None:
    client = EnclaveClient(own_enclave.socket.with_name("none.sock"))
    with pytest.raises(EnclaveUnavailable):
        await client.hello()


async def test_a_call_in_flight_when_the_enclave_dies_has_an_unknown_outcome(own_enclave: Process) -> None:
    client = EnclaveClient(own_enclave.socket)
    running = asyncio.create_task(run(client, "export default () => new Promise(() => {})"))
    await asyncio.sleep(0.5)
    own_enclave.process.kill()
    with pytest.raises(OutcomeUnknown):
        await running
    with pytest.raises(EnclaveUnavailable):
        await client.hello()


async def test_an_enclave_that_hangs_is_given_up_after_the_calls_own_limit(
    own_enclave: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neolayer.enclave.client.INVOKE_SLACK_S", 0.5)
    client = EnclaveClient(own_enclave.socket)
    assert (await run(client, "export default () => 1")).output == b"1"
    os.kill(own_enclave.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown):
            await client.invoke("export default () => 1"[-20:], UUID(int=1), b"", no_host, timeout_ms=100)
    finally:
        os.kill(own_enclave.process.pid, signal.SIGCONT)
    assert (await client.hello()).provider == "simulated"


def test_it_works_on_the_event_loop_that_the_service_uses(tmp_path_factory: pytest.TempPathFactory) -> None:
    """uvloop's transports are of other classes than asyncio's."""

    async def check() -> bytes:
        process = await Process.start(tmp_path_factory.mktemp("uvloop"))
        try:
            return (await run(EnclaveClient(process.socket), "export default () => 'here'")).output
        finally:
            await process.stop()

    assert uvloop.run(check()) == b'"here"'


async def test_an_answer_of_the_host_that_is_too_large_fails_that_call_only(own_enclave: Process) -> None:
    async def large(name: str, argument: bytes) -> bytes:
        return b'"' + b"x" * 9_000_000 + b'"'

    client = EnclaveClient(own_enclave.socket)
    source = "export default async (i, ctx) => ctx.neo.read({})"
    await client.load(Load("tenant", "large", "test", source, Limits(), [], []))
    result = await client.invoke("large", UUID(int=1), b"", large, timeout_ms=10_000)
    assert result.error is not None
    assert "bytes" in result.error.message
    assert (await run(client, "export default () => 2")).output == b"2"
