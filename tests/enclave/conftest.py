"""One enclave for most tests of a file, and callers of it."""

from collections.abc import AsyncIterator

import pytest

from tests.enclave.caller import Caller
from tests.enclave_process.conftest import own_enclave
from tests.enclave_process.host import Process

__all__ = ["own_enclave"]


@pytest.fixture(scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    process = await Process.start(tmp_path_factory.mktemp("direct"), "--spare", "1", "--egress-allow-private")
    yield process
    assert await process.stop() == 0


@pytest.fixture
async def caller(process: Process) -> AsyncIterator[Caller]:
    caller = Caller(process)
    yield caller
    await caller.client.close()


@pytest.fixture
async def own(own_enclave: Process) -> AsyncIterator[Caller]:
    caller = Caller(own_enclave)
    yield caller
    await caller.client.close()
