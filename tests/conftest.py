"""The services that tests use: real ones, started once a session when the first test asks."""

import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from neolayer.chain.payload import parse_account
from neolayer.db.migrations import migrate
from neolayer.supervisor import leftovers
from neolayer.supervisor.part import Part
from neolayer.supervisor.places import HOME_MARK, Places
from neolayer.supervisor.postgres import Postgres
from neolayer.supervisor.stack import Stack
from neolayer.supervisor.valkey import EmbeddedValkey
from tests.chain.conftest import Node
from tests.proxy import NodeProxy
from tests.system import NewSystem, System


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A home for the services of this session."""
    return Places.open(tmp_path_factory.mktemp("home"))


async def running(part: Part) -> AsyncIterator[None]:
    stack = Stack([part], watch=lambda event: None)
    try:
        await stack.start()
        yield
    finally:
        await stack.stop()


@pytest.fixture(scope="session")
async def postgres_url(places: Places) -> AsyncIterator[str]:
    """A database of a PostgreSQL for this session. Without fsync: a crash of the machine loses it."""
    postgres = Postgres.open(places, {HOME_MARK: str(places.home)}, durable=False)
    async for _ in running(postgres.part()):
        yield postgres.url
    places.tidy()


@pytest.fixture(scope="session")
async def valkey_url(places: Places) -> AsyncIterator[str]:
    """A Valkey for this session; tests share its keys."""
    valkey = EmbeddedValkey.open(places, {HOME_MARK: str(places.home)})
    async for _ in running(valkey.part()):
        yield valkey.url


_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def new_database(postgres_url: str, label: str, template: str = "template1") -> AsyncIterator[str]:
    """A database that is dropped afterwards.

    Args:
        template: the database to copy; nobody may be connected to it.
    """
    name = f"{re.sub(r'[^a-z0-9]+', '_', label.lower())[:40]}_{next(_numbers)}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
        await connection.execute(create)
        try:
            yield postgres_url.replace("/neolayer?", f"/{name}?")
        finally:
            await connection.execute(drop)


@pytest.fixture
async def database_url(postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """An empty database of its own for this test."""
    async with new_database(postgres_url, request.node.name) as url:
        yield url


@pytest.fixture(scope="session")
async def migrated_template(postgres_url: str) -> AsyncIterator[str]:
    """Name of a database with all migrations and no rows, to copy: about 50 ms less a test than migrating."""
    async with new_database(postgres_url, "migrated") as url:
        await migrate(url)
        yield conninfo_to_dict(url)["dbname"]


@pytest.fixture
async def migrated_url(
    postgres_url: str, migrated_template: str, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """A database of its own for this test, with all migrations."""
    async with new_database(postgres_url, request.node.name, migrated_template) as url:
        yield url


async def ended(system: System) -> None:
    """Stop a system in whatever state a test left it."""
    try:
        await system.stop()
    finally:
        await leftovers.end(system.home)


@pytest.fixture(scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """One whole system for all tests that leave it running."""
    system = System(tmp_path_factory.mktemp("system"))
    try:
        await system.start()
        yield system
    finally:
        await ended(system)


@pytest.fixture
async def new_system(tmp_path: Path) -> AsyncIterator[NewSystem]:
    """Starts whole systems that belong to one test, which may kill them."""
    systems: list[System] = []

    async def start(**settings: str) -> System:
        systems.append(System(tmp_path / f"system-{len(systems)}", **settings))
        await systems[-1].start()
        return systems[-1]

    yield start
    for system in systems:
        await ended(system)


@pytest.fixture(scope="session")
async def system_behind_proxy(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[System, NodeProxy]]:
    """A system whose only node is behind a proxy; its wallet ``default`` has GAS."""
    node = Node(tmp_path_factory.mktemp("devnet"))
    proxy = NodeProxy(node.devnet.rpc_url)
    system = None
    try:
        await node.start()
        await proxy.start()
        system = System(tmp_path_factory.mktemp("system"), rpc_urls=proxy.url)
        wallet = parse_account((await system.start())["wallet_address"])
        # Past the proxy: what tests count does not suffer from its faults.
        system.rpc_url = node.devnet.rpc_url
        await node.devnet.wait(node.rpc, await node.devnet.fund(node.rpc, wallet, 1000 * 10**8))
        yield system, proxy
    finally:
        if system:
            await ended(system)
        await proxy.close()
        await node.close()
