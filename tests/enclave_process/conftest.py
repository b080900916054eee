"""One enclave process for most tests; those that break something start their own."""

from collections.abc import AsyncIterator

import pytest

from tests.enclave_process.host import Host, Process


@pytest.fixture(scope="session")
async def enclave(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    process = await Process.start(tmp_path_factory.mktemp("enclave"))
    yield process
    assert await process.stop() == 0


@pytest.fixture
async def host(enclave: Process) -> AsyncIterator[Host]:
    connection = await Host.connect(enclave)
    yield connection
    await connection.close()


@pytest.fixture(params=["through the enclave", "directly"])
async def either_host(request: pytest.FixtureRequest, enclave: Process) -> AsyncIterator[Host]:
    """Both ways on which calls reach a cell."""
    connection = await Host.connect(enclave, direct=request.param == "directly")
    yield connection
    await connection.close()


@pytest.fixture
async def own_enclave(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """An enclave for this test alone, whose cells and counters nobody else touches; without spares."""
    process = await Process.start(tmp_path_factory.mktemp("own"), "--spare", "0")
    yield process
    await process.stop()


@pytest.fixture
async def own_host(own_enclave: Process) -> AsyncIterator[Host]:
    connection = await Host.connect(own_enclave)
    yield connection
    await connection.close()
