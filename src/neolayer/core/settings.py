"""All settings, read once at the start from the environment and an optional TOML file, then frozen.

``NEOLAYER_<NAME>`` in the environment wins over ``<name>`` in the TOML file named by ``NEOLAYER_CONFIG``,
which wins over the default. Unknown names and bad values are refused at start, all of them at once.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

import msgspec

from neolayer.core.errors import ServiceError

PREFIX: Final = "NEOLAYER_"
#: Read by the command-line client or set by the supervisor on its children; known, but no settings.
OTHER_NAMES: Final = frozenset({"CONFIG", "URL", "API_KEY", "SUPERVISED_HOME"})

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class BadSettings(ServiceError):
    """Some settings are unknown or unusable."""

    code = "bad_settings"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems), problems=problems)
        self.problems = problems


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can set. Sizes and times carry their unit in the name."""

    #: State of the embedded parts, sockets, logs, the simulated sealing key and the client's credentials.
    home: Path = Path(".neolayer")
    #: Where the API listens.
    host: str = "127.0.0.1"
    port: Port = 8420
    #: API processes.
    api_workers: Positive = 1
    #: Largest request body outside of functions' sources; bytes.
    body_limit_bytes: Positive = 1_048_576

    #: ``postgresql://…``; without it an embedded PostgreSQL is started.
    database_url: str | None = None
    database_pool_max: Positive = 16
    database_pool_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    #: ``redis://…``, ``valkey://…`` or ``unix://…``; without it an embedded Valkey is started.
    valkey_url: str | None = None
    #: Neo N3 nodes, comma-separated; without them a private network is started.
    rpc_urls: tuple[str, ...] = ()
    devnet_rpc_port: Port = 20332
    #: For one attempt at one node; seconds.
    rpc_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    #: Magic of the network that the nodes must be of; without it the first one that answers sets it.
    network: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] | None = None
    #: Nodes that a transaction is sent to at once.
    broadcast_nodes: Annotated[int, msgspec.Meta(ge=1, le=32)] = 3
    #: Between two looks at each node; seconds.
    node_probe_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0
    #: A node this many blocks behind the others is neither read from nor followed.
    node_lag_blocks: Annotated[int, msgspec.Meta(ge=2, le=1000)] = 3
    #: Memory of one process for chain data that does not change; bytes.
    chain_cache_bytes: Positive = 33_554_432

    #: Unix socket of an enclave that runs apart; without it one is started.
    enclave_socket: Path | None = None
    #: Lets functions' `fetch` reach private and loopback addresses. For development only.
    egress_allow_private: bool = False
    #: Processes of functions, one a tenant; without it as many as fit into half of the machine's memory.
    cells: Positive | None = None
    #: Blank processes kept ready for tenants that have none; 0 starts each when it is needed.
    cells_spare: Annotated[int, msgspec.Meta(ge=0, le=64)] = 2
    #: A process that is unused for this long ends; seconds.
    cell_idle_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    #: How long a tenant waits for a process when all are busy, before its calls are refused; seconds.
    cell_wait_s: Annotated[float, msgspec.Meta(gt=0, le=8)] = 8.0
    #: Layers of the cells' hardening to leave out, comma-separated; see `neolayer doctor`.
    cell_without: tuple[str, ...] = ()

    #: Batches of transactions that one worker process prepares and sends at a time; `neolayer workers scale`
    #: changes it for all processes while they run.
    transaction_workers: Positive = 4
    #: Queued transactions of one tenant, and of all; more are refused.
    transaction_queue_max: Positive = 100_000
    transaction_queue_total_max: Positive = 1_000_000
    #: System fee of one on-chain transaction that several share, at most; GAS. Less than the nodes' MaxGasInvoke.
    group_gas_max: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    #: Asynchronous executions that one worker process runs at a time.
    async_executions: Positive = 32
    #: Asynchronous executions of one tenant that may wait; more are refused.
    async_queue_max: Positive = 10_000
    #: Pause after the first failed run of one, doubled for each further one; seconds.
    async_retry_s: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    #: How long a worker owns what it leased; after a crash others wait this long; seconds.
    lease_s: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    #: A sent transaction that is in no block after this many blocks is sent again, byte for byte.
    resend_after_blocks: Positive = 5
    #: How long events are kept for clients that come back; hours.
    events_keep_hours: Positive = 168

    #: Let transactions of one wallet share on-chain transactions.
    opt_transaction_grouping: bool = True
    #: Invoke functions past the web framework; the answers are the same.
    opt_raw_invoke: bool = True
    #: Calls of warm functions go to their process without passing the enclave's; the answers are the same.
    opt_direct_calls: bool = True
    #: Look for the answer of a function that is called alone instead of sleeping until it is there; costs up to
    #: 0.1 ms of a processor for such a call.
    opt_busy_poll: bool = True
    #: Look for garbage in cycles less often, and not among what is there from the start.
    opt_gc_tuning: bool = True
    #: Keep V8's compiled code of functions across restarts and cells.
    opt_code_cache: bool = True
    #: Make isolates before calls need them, and keep those that save most time for their memory.
    opt_warm_up: bool = True

    #: Ask the best node, as probes and answers show it; off: stay with the one that answered last.
    opt_node_selection: bool = True
    #: Ask a second node when the first one is slower than usual.
    opt_hedged_reads: bool = True
    #: Keep chain data that does not change; equal reads at the same time share one answer.
    opt_chain_cache: bool = True

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Self:
        """Read the environment and the TOML file it names.

        Raises:
            BadSettings: names every unknown name and every bad value.
        """
        problems: list[str] = []
        raw: dict[str, tuple[str, Any]] = {}
        if config := environ.get(PREFIX + "CONFIG"):
            try:
                content = tomllib.loads(Path(config).read_text())
            except OSError as error:
                raise BadSettings([f"NEOLAYER_CONFIG: cannot read {config}: {error.strerror}"]) from None
            except tomllib.TOMLDecodeError as error:
                raise BadSettings([f"NEOLAYER_CONFIG: {config} is not TOML: {error}"]) from None
            raw |= {name.lower(): (f"{name} in {config}", value) for name, value in content.items()}
        for name, text in environ.items():
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in OTHER_NAMES:
                raw[name.removeprefix(PREFIX).lower()] = (name, text)

        values: dict[str, Any] = {}
        known = {field.name: field for field in msgspec.structs.fields(cls)}
        for name, (origin, value) in raw.items():
            if name not in known:
                problems.append(f"{origin}: no such setting")
                continue
            try:
                values[name] = _value(known[name].type, value)
            except msgspec.ValidationError as error:
                shown = "" if name.endswith(("_url", "_urls")) else f", got {value!r}"
                problems.append(f"{origin}: {str(error)[:1].lower()}{str(error)[1:]}{shown}")
        problems += _address_problems(values, raw)
        if problems:
            raise BadSettings(sorted(problems))
        settings = cls(**values)
        return msgspec.structs.replace(settings, home=settings.home.expanduser().absolute())

    @property
    def url(self) -> str:
        """Where clients reach the API."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self.port}"


def _value(type_: Any, value: Any) -> Any:
    if type_ == tuple[str, ...] and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if type_ is bool and isinstance(value, str):
        value = {"1": True, "true": True, "0": False, "false": False}.get(value.lower(), value)
    if type_ in (Path, Path | None) and isinstance(value, str):
        if not value:
            raise msgspec.ValidationError("Expected a path")
        return Path(value)
    return msgspec.convert(value, type_, strict=not isinstance(value, str))


def _address_problems(values: dict[str, Any], raw: dict[str, tuple[str, Any]]) -> list[str]:
    """Addresses are checked for their form here, so that a typing slip shows at start and not as an outage."""
    schemes = {
        "database_url": {"postgresql", "postgres"},
        "valkey_url": {"redis", "rediss", "valkey", "valkeys", "unix"},
        "rpc_urls": {"http", "https"},
    }
    problems = []
    for name, allowed in schemes.items():
        given = values.get(name) or ()
        for url in (given,) if isinstance(given, str) else given:
            parts = urlsplit(url)
            if parts.scheme not in allowed or (name == "rpc_urls" and not parts.hostname):
                # The value itself may hold a password.
                forms = " or ".join(f"{scheme}://…" for scheme in sorted(allowed))
                problems.append(f"{raw[name][0]}: expected an address like {forms}")
    nodes = [url.rstrip("/") for url in values.get("rpc_urls", ())]
    if len(set(nodes)) < len(nodes):
        # It would count twice where a majority decides.
        problems.append(f"{raw['rpc_urls'][0]}: a node is named twice")
    return problems
