"""The composition root: the only place that builds the parts and joins them."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from litestar.types import ASGIApp
from prometheus_client import Counter, Gauge
from valkey.asyncio import Valkey

from neolayer.accounts.routes import KeysController
from neolayer.accounts.service import Accounts, ensure_tenant
from neolayer.accounts.throttle import FailureThrottle
from neolayer.api.body import DrainedBody
from neolayer.api.health import HealthChecks
from neolayer.api.metrics import RequestMetrics
from neolayer.api.server import build_api
from neolayer.chain.contracts import Contracts
from neolayer.chain.fees import Fees
from neolayer.chain.market import FeeMarket
from neolayer.chain.read import Reader
from neolayer.chain.routes import ChainController
from neolayer.chain.rpc import PoolOptions, RpcClient
from neolayer.chain.seen import SeenBlocks
from neolayer.chain.views import show_metrics
from neolayer.core.errors import Unavailable
from neolayer.core.settings import Settings
from neolayer.core.types import DATOSHI_PER_GAS
from neolayer.db.leader import lead
from neolayer.db.migrations import migrate
from neolayer.db.notices import Announcer, NoticeListener
from neolayer.db.pool import Database
from neolayer.db.statistics import keep_statistics
from neolayer.enclave import EnclaveClient
from neolayer.enclave.routes import AttestationController
from neolayer.events.feed import Feed
from neolayer.events.outbox import Outbox
from neolayer.events.routes import EventsController
from neolayer.events.stream import EventStreams
from neolayer.functions.aliases import Aliases
from neolayer.functions.asynchronous import AsyncExecutions
from neolayer.functions.endpoint import InvokeEndpoint
from neolayer.functions.execution_routes import ExecutionsController
from neolayer.functions.follow import Followers
from neolayer.functions.history import History
from neolayer.functions.host import HostCalls
from neolayer.functions.idempotency import IdempotentInvocations, InvokeKeys
from neolayer.functions.invoke_routes import InvokeController
from neolayer.functions.metrics import QUEUE
from neolayer.functions.records import ExecutionRecords
from neolayer.functions.resolver import Resolver
from neolayer.functions.routes import FunctionsController
from neolayer.functions.service import Functions
from neolayer.functions.versions import Versions
from neolayer.functions.worker import AsyncWorker
from neolayer.observability import garbage
from neolayer.observability.log import configure_logging
from neolayer.secrets.routes import SecretsController
from neolayer.secrets.service import Secrets
from neolayer.transactions.attempts import Attempts
from neolayer.transactions.backpressure import QueueBound
from neolayer.transactions.limits import FeeLimits
from neolayer.transactions.model import State
from neolayer.transactions.monitor import Monitor
from neolayer.transactions.pipeline import Pipeline
from neolayer.transactions.prepare import Preparer
from neolayer.transactions.pricing import Pricing
from neolayer.transactions.queue import Queue
from neolayer.transactions.replace import Replacements
from neolayer.transactions.routes import LimitsController, TransactionsController
from neolayer.transactions.sending import Sender
from neolayer.transactions.service import Transactions
from neolayer.transactions.waiting import Waiting
from neolayer.wallets.routes import WalletsController
from neolayer.wallets.service import WalletNotFound, Wallets
from neolayer.watches.routes import WatchesController
from neolayer.watches.service import Watches

_log = logging.getLogger(__name__)
DEFAULT_TENANT: Final = "default"
DEFAULT_WALLET: Final = "default"

TRANSACTIONS: Final = Gauge("neolayer_transactions", "Transactions by state.", ["state"])
POOL: Final = Gauge("neolayer_database_pool", "Counters of the connection pool, see psycopg_pool.", ["counter"])
BACKGROUND_FAILURES: Final = Counter(
    "neolayer_background_failures_total", "Background work that failed and was started again.", ["work"]
)
#: Before failed background work is started again; seconds.
BACKGROUND_PAUSE_S: Final = 1.0
#: A follower that is more blocks behind the node than this shows as down.
FOLLOWER_LAG_BLOCKS: Final = 10
LOADS: Final = Gauge(
    "neolayer_enclave_loads",
    "How functions became warm isolates: cold and warm starts, times in µs, the code cache, predictions.",
    ["counter"],
)
CELLS: Final = Gauge("neolayer_enclave", "Counters of the enclave: cells, isolates, running calls, …", ["counter"])


@dataclass(frozen=True)
class Parts:
    """What both the API and a worker are made of."""

    settings: Settings
    database: Database
    valkey: Valkey
    rpc: RpcClient
    enclave: EnclaveClient
    notices: NoticeListener
    announcer: Announcer
    accounts: Accounts
    wallets: Wallets
    secrets: Secrets
    pricing: Pricing
    limits: FeeLimits
    transactions: Transactions
    replacements: Replacements
    outbox: Outbox
    watches: Watches


def pool_options(settings: Settings) -> PoolOptions:
    return PoolOptions(
        select=settings.opt_node_selection,
        hedge=settings.opt_hedged_reads,
        keep=settings.opt_chain_cache,
        keep_bytes=settings.chain_cache_bytes,
        broadcast=settings.broadcast_nodes,
        lag_blocks=settings.node_lag_blocks,
        probe_s=settings.node_probe_s,
        network=settings.network,
    )


def enclave_socket(settings: Settings) -> Path:
    return settings.enclave_socket or settings.home / "run" / "enclave.sock"


@asynccontextmanager
async def build_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Connect everything; closes in reverse order."""
    if not settings.database_url or not settings.valkey_url or not settings.rpc_urls:
        raise Unavailable(
            "NEOLAYER_DATABASE_URL, NEOLAYER_VALKEY_URL and NEOLAYER_RPC_URLS are needed here; "
            "`neolayer up` starts embedded parts and sets them"
        )
    async with AsyncExitStack() as stack:
        database = Database(
            settings.database_url,
            max_size=settings.database_pool_max,
            timeout_s=settings.database_pool_timeout_s,
        )
        await database.open()
        stack.push_async_callback(database.close)
        valkey = Valkey.from_url(settings.valkey_url, socket_timeout=1.0, socket_connect_timeout=1.0)
        stack.push_async_callback(valkey.aclose)
        rpc = RpcClient(settings.rpc_urls, timeout_s=settings.rpc_timeout_s, options=pool_options(settings))
        stack.push_async_callback(rpc.aclose)
        enclave = EnclaveClient(
            enclave_socket(settings), direct=settings.opt_direct_calls, busy_poll=settings.opt_busy_poll
        )
        stack.push_async_callback(enclave.close)
        notices = NoticeListener(settings.database_url)
        announcer = Announcer(database)
        stack.push_async_callback(announcer.close)
        wallets = Wallets(database, enclave, rpc)
        pricing = Pricing(rpc, Fees(rpc), FeeMarket(rpc))
        limits = FeeLimits(database)
        yield Parts(
            settings=settings,
            database=database,
            valkey=valkey,
            rpc=rpc,
            enclave=enclave,
            notices=notices,
            announcer=announcer,
            accounts=Accounts(database, FailureThrottle(valkey), notices),
            wallets=wallets,
            secrets=Secrets(database, enclave, notices),
            pricing=pricing,
            transactions=Transactions(
                database,
                wallets,
                pricing,
                Contracts(rpc),
                limits,
                QueueBound(
                    database,
                    tenant_max=settings.transaction_queue_max,
                    total_max=settings.transaction_queue_total_max,
                ),
                announcer,
            ),
            limits=limits,
            replacements=Replacements(database, rpc, enclave, wallets, pricing, limits),
            outbox=Outbox(database),
            watches=Watches(database, rpc),
        )


def build_functions(parts: Parts, reader: Reader, records: ExecutionRecords) -> tuple[Resolver, Functions]:
    """What runs functions, in the API and in a worker."""
    resolver = Resolver(parts.database, parts.secrets, parts.notices)
    host = HostCalls(reader, parts.wallets, parts.transactions)
    warm_up = parts.settings.opt_warm_up
    return resolver, Functions(parts.enclave, resolver, host, records, warm_up=warm_up)


def build_pipeline(parts: Parts) -> Pipeline:
    """What signs and sends transactions."""
    settings = parts.settings
    queue = Queue(parts.database, lease_s=settings.lease_s)
    attempts = Attempts(parts.database, parts.rpc, lease_s=settings.lease_s)
    preparer = Preparer(
        queue,
        attempts,
        parts.enclave,
        parts.rpc,
        parts.wallets,
        parts.pricing,
        grouping=settings.opt_transaction_grouping,
        group_gas_max=round(settings.group_gas_max * DATOSHI_PER_GAS),
    )
    return Pipeline(
        parts.database,
        queue,
        attempts,
        preparer,
        Sender(parts.database, parts.rpc, parts.pricing),
        parts.rpc,
        parts.pricing,
        parts.notices,
        workers=settings.transaction_workers,
        lease_s=settings.lease_s,
    )


def build_monitor(parts: Parts) -> Monitor:
    """What confirms transactions."""
    settings = parts.settings
    queue = Queue(parts.database, lease_s=settings.lease_s)
    return Monitor(
        parts.database, parts.rpc, queue, parts.watches, resend_after_blocks=settings.resend_after_blocks
    )


def health_checks(parts: Parts) -> HealthChecks:
    async def database() -> dict[str, Any]:
        await parts.database.fetch_one(b"SELECT 1")
        stats = parts.database.stats()
        return {name: stats.get(name, 0) for name in ("pool_size", "pool_available", "requests_waiting")}

    async def enclave() -> dict[str, Any]:
        identity = await parts.enclave.hello()
        return {
            "provider": identity.provider,
            "measurement": identity.measurement.hex(),
            "egress_allow_private": identity.egress_allow_private,
            "missing_layers": [
                layer.name for layer in await parts.enclave.layers() if layer.state in ("off", "unavailable")
            ],
        }

    async def chain() -> dict[str, Any]:
        status = await parts.rpc.status()
        if status.error:
            raise Unavailable(status.error)
        nodes = parts.rpc.nodes()
        return {
            "node": status.url,
            "height": status.height,
            "network": (await parts.rpc.version()).network,
            "nodes_ok": sum(node.state == "ok" for node in nodes.nodes),
            # All of them are used although none is fit.
            "degraded": nodes.degraded,
            "nodes_not_ok": {node.url: node.reason or node.state for node in nodes.nodes if node.state != "ok"},
        }

    async def follower() -> dict[str, Any]:
        version = await parts.rpc.version()
        cursor = await SeenBlocks(parts.database, version.network).cursor()
        height = await parts.rpc.block_count() - 1
        behind = 0 if cursor is None else height - cursor.index
        if behind > FOLLOWER_LAG_BLOCKS:
            raise Unavailable(
                f"{behind} blocks behind the node: no transaction is confirmed; is a worker running?"
            )
        return {"block": cursor.index if cursor else None, "behind": behind}

    async def valkey() -> dict[str, Any]:
        await parts.valkey.ping()
        return {}

    return HealthChecks(
        required={"database": database, "enclave": enclave, "chain": chain},
        optional={"follower": follower, "valkey": valkey},
    )


class Api:
    """The ASGI application.

    Built in the server's process by `create_api`; its parts live from lifespan startup to shutdown.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._litestar: ASGIApp | None = None
        #: Plain calls of functions are served by the connections themselves.
        self.invocations: InvokeEndpoint | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._litestar is not None:
            await self._litestar(scope, receive, send)
        else:
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            _log.exception("the API cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stack.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        parts = await self._stack.enter_async_context(build_parts(self._settings))
        records = ExecutionRecords(parts.database)
        reader = Reader(parts.rpc)
        resolver, functions = build_functions(parts, reader, records)
        aliases = Aliases(parts.database, parts.notices)
        history = History(parts.database, records)
        keys = InvokeKeys(parts.database)
        feed = Feed(parts.outbox)
        asynchronous = AsyncExecutions(
            parts.database,
            resolver,
            history,
            keys,
            parts.notices,
            parts.announcer,
            queue_max=self._settings.async_queue_max,
        )
        for name, work in (
            ("notices", parts.notices.run),
            ("use of keys", parts.accounts.record_use),
            ("execution records", records.run),
            ("events", feed.run),
        ):
            await self._stack.enter_async_context(background(name, work))
        # Before the last records are written: calls that still run have ended for us, and are recorded so.
        self._stack.push_async_callback(parts.enclave.close)

        async def refresh_metrics() -> None:
            with contextlib.suppress(Unavailable):
                counts = await parts.transactions.count_by_state()
                for state in get_args(State):
                    TRANSACTIONS.labels(state).set(counts.get(state, 0))
                queue = await asynchronous.count_by_state()
                for state in ("queued", "running", "dead"):
                    QUEUE.labels(state).set(queue.get(state, 0))
            show_metrics(parts.rpc.pool)
            for counter, value in parts.database.stats().items():
                POOL.labels(counter).set(value)
            with contextlib.suppress(Unavailable):
                stats = await parts.enclave.stats()
                for gauge, counters in ((CELLS, stats), (LOADS, stats.loads)):
                    for counter in counters.__struct_fields__:
                        if counter != "loads":
                            gauge.labels(counter).set(getattr(counters, counter))

        if self._settings.opt_raw_invoke:
            self.invocations = InvokeEndpoint(functions, parts.accounts)
        litestar = build_api(
            routes=[
                KeysController,
                SecretsController,
                FunctionsController,
                InvokeController,
                ExecutionsController,
                WalletsController,
                TransactionsController,
                LimitsController,
                EventsController,
                ChainController,
                WatchesController,
                AttestationController,
            ],
            services={
                "accounts": parts.accounts,
                "secrets": parts.secrets,
                # Not named as a member of any body is: the framework could not tell whose fault a bad value is.
                "function_versions": Versions(
                    parts.database, parts.enclave, parts.secrets, aliases, parts.notices
                ),
                "function_aliases": aliases,
                "functions": functions,
                "idempotent": IdempotentInvocations(parts.database, resolver, functions, keys),
                "asynchronous": asynchronous,
                "history": history,
                "followers": Followers(history),
                "wallets": parts.wallets,
                "transactions": parts.transactions,
                "replacements": parts.replacements,
                "limits": parts.limits,
                "waiting": Waiting(parts.transactions, feed),
                "event_streams": EventStreams(parts.outbox, feed),
                "watches": parts.watches,
                "reader": reader,
                "rpc": parts.rpc,
                "enclave": parts.enclave,
            },
            authenticator=parts.accounts,
            checks=health_checks(parts),
            refresh_metrics=refresh_metrics,
            body_limit_bytes=self._settings.body_limit_bytes,
        )
        self._litestar = RequestMetrics(DrainedBody(litestar))
        if self._settings.opt_gc_tuning:
            garbage.tune()


@asynccontextmanager
async def background(name: str, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``work`` beside the block, again whenever it fails; at the end it is cancelled and waited for."""

    async def run() -> None:
        while True:
            try:
                await work()
            except Exception:
                BACKGROUND_FAILURES.labels(name).inc()
                _log.exception("%s failed and is started again", name)
                await asyncio.sleep(BACKGROUND_PAUSE_S)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def create_api() -> ASGIApp:
    """Entry point of the server's worker processes: settings come from their environment."""
    settings = Settings.load(os.environ)
    configure_logging(settings.log_level)
    return Api(settings)


async def run_worker(settings: Settings) -> None:
    """Run asynchronous executions, and prepare, send and confirm transactions, until cancelled.

    Says ``{"ready": true}`` once connected.
    """
    async with build_parts(settings) as parts:
        pipeline = build_pipeline(parts)
        monitor = build_monitor(parts)
        # Of functions that asynchronous ones call.
        records = ExecutionRecords(parts.database)
        resolver, functions = build_functions(parts, Reader(parts.rpc), records)
        executions = AsyncWorker(
            parts.database,
            resolver,
            functions,
            parts.notices,
            slots=settings.async_executions,
            lease_s=settings.lease_s,
            retry_s=settings.async_retry_s,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(records.run())
            tasks.create_task(executions.run())
            tasks.create_task(parts.notices.run())
            tasks.create_task(parts.outbox.run(settings.events_keep_hours))
            tasks.create_task(keep_statistics(parts.database))
            tasks.create_task(pipeline.run())
            tasks.create_task(lead(parts.database.url, "block-follower", monitor.run))
            print(json.dumps({"ready": True}), flush=True)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` found or made."""

    #: Only when it was made just now: it is shown once and stored hashed.
    api_key: str | None
    wallet_address: str


async def prepare(settings: Settings, *, need_key: bool) -> Prepared:
    """Bring the database to this version; on the first start make a tenant, its API key and a wallet.

    Args:
        need_key: make an API key now, as nobody here has one.
    """
    assert settings.database_url
    await migrate(settings.database_url)
    async with build_parts(settings) as parts:
        tenant_id = await ensure_tenant(parts.database, DEFAULT_TENANT)
        try:
            wallet = await parts.wallets.find(tenant_id, DEFAULT_WALLET)
        except WalletNotFound:
            wallet = await parts.wallets.create(tenant_id, DEFAULT_WALLET)
        # Last, so that a failure before it leaves no key that nobody has seen.
        key = await parts.accounts.create_key(tenant_id, "first") if need_key else None
        return Prepared(api_key=key.key if key else None, wallet_address=wallet.address)
