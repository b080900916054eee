"""Functions, versions and executions as the rest of the room and the API see them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec

from neolayer.core.names import ALIAS, HOST, NAME, SECRET_NAME
from neolayer.core.types import Principal
from neolayer.enclave import Limits, SealedSecret

Name = Annotated[str, msgspec.Meta(pattern=NAME)]
SecretName = Annotated[str, msgspec.Meta(pattern=SECRET_NAME)]
#: `api.example.com`, `*.example.com`, either with `:port`; `http://…` where plain HTTP is meant.
HostPattern = Annotated[str, msgspec.Meta(pattern=HOST)]
Alias = Annotated[str, msgspec.Meta(pattern=ALIAS)]
#: What calls of a version share: what a warm isolate keeps, or nothing.
Isolation = Literal["version", "call"]
#: Asked for over HTTP and waited for; over HTTP and not waited for; by another function.
Kind = Literal["sync", "async", "invoke"]
Status = Literal["queued", "running", "succeeded", "failed", "dead", "cancelled"]
MAX_SOURCE_BYTES = 1_000_000
#: The alias that the plain name stands for.
LIVE: Final = "live"
#: Stands for the newest version and can be no alias of its own.
LATEST: Final = "latest"


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is deployed. Limits are hard; times in ms, memory in MiB."""

    source: Annotated[str, msgspec.Meta(min_length=1)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=30_000)] = 10_000
    cpu_ms: Annotated[int, msgspec.Meta(ge=10, le=10_000)] = 1_000
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=512)] = 128
    secrets: Annotated[list[SecretName], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)
    egress: Annotated[list[HostPattern], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)
    isolation: Isolation = "version"
    #: Runs of an asynchronous execution before it is dead.
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    #: Make the version without calling it: `live` is pinned to what it is now.
    hold: bool = False


class NewFunction(FunctionSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version's part of an alias's calls: its weight by the sum of all weights."""

    version: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    weight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class AliasSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    versions: Annotated[list[Share], msgspec.Meta(min_length=1, max_length=10)]


class AliasView(msgspec.Struct, frozen=True):
    name: str
    versions: list[Share]
    #: False only for a `live` that follows the latest deploy.
    pinned: bool
    updated_at: datetime


class AliasList(msgspec.Struct, frozen=True):
    items: list[AliasView]


class FunctionView(msgspec.Struct, frozen=True, kw_only=True):
    """A function at its latest version, which need not be the one that is `live`. ``source`` is null in lists."""

    id: UUID
    name: str
    version: int
    #: What a call of the plain name runs, and whether deploys change that.
    live: list[Share]
    pinned: bool
    #: SHA-256 of the source, hex.
    code_hash: str
    timeout_ms: int
    cpu_ms: int
    memory_mb: int
    secrets: list[str]
    egress: list[str]
    isolation: Isolation
    max_attempts: int
    created_at: datetime
    updated_at: datetime
    source: str | None = None


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version. ``source`` is null in lists."""

    version: int
    code_hash: str
    timeout_ms: int
    cpu_ms: int
    memory_mb: int
    secrets: list[str]
    egress: list[str]
    isolation: Isolation
    max_attempts: int
    #: Aliases that name it, `live` and `latest` among them.
    aliases: list[str]
    created_at: datetime
    source: str | None = None


class VersionPage(msgspec.Struct, frozen=True):
    items: list[VersionView]
    #: Null on the last page.
    next: str | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A version together with the versions of its secrets: what the enclave runs."""

    #: Names exactly this content to the enclave.
    id: str
    tenant: str
    function_id: UUID
    function: str
    version: int
    source: str
    limits: Limits
    secrets: list[SealedSecret]
    egress: list[str]
    isolation: Isolation
    max_attempts: int


class Budget:
    """Calls of functions by functions that one execution may still cause, itself or through others."""

    def __init__(self, left: int) -> None:
        self.left = left


class Call(msgspec.Struct, frozen=True, gc=False):
    """One execution on its way."""

    principal: Principal
    id: UUID
    #: When it must be over, by `time.monotonic`; a function that it calls must be over then, too.
    deadline: float
    kind: Kind = "sync"
    #: What followed the @ of the name that was called.
    alias: str | None = None
    #: Executions above this one.
    depth: int = 0
    parent_id: UUID | None = None
    #: Names its effects: the same when it is run again, and different for each call of a function by it.
    effects: str | None = None
    attempt: int = 1
    #: Of the execution at the top; made when a function first calls another.
    budget: Budget | None = None


class ExecutionRecord(msgspec.Struct, frozen=True):
    """A row of ``executions``; fields as its columns."""

    tenant_id: UUID
    id: UUID
    function_id: UUID
    function: str
    version: int
    status: Status
    #: JSON text, like the next two.
    output: str | None
    error: str | None
    logs: str | None
    cold: bool
    wall_us: int
    cpu_us: int
    heap_bytes: int
    fetches: int
    created_at: datetime
    kind: Kind = "sync"
    parent_id: UUID | None = None
    attempt: int = 1
    alias: str | None = None
    queue_us: int | None = None
    peak_heap_bytes: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    #: JSON text: microseconds by phase of a cold start.
    phases: str | None = None


class ExecutionView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    function: str
    version: int
    #: What followed the @ of the name that was called.
    alias: str | None
    kind: Kind
    #: The execution whose function called this one.
    parent: UUID | None
    status: Status
    #: Which run this tells of; above 1 for repeated asynchronous ones.
    attempt: int
    #: What the function returned; null when it failed, or is not over.
    output: msgspec.Raw
    #: {code, message, stack}; null when it succeeded.
    error: dict[str, Any] | None
    cold: bool
    wall_ms: float
    cpu_ms: float
    #: Waited for a free place; null when that was not measured, like the next members.
    queue_ms: float | None
    heap_bytes: int
    peak_heap_bytes: int | None
    bytes_in: int | None
    bytes_out: int | None
    #: Milliseconds by phase of a cold start.
    phases: dict[str, float] | None
    fetches: int
    created_at: datetime


class Accepted(msgspec.Struct, frozen=True):
    """An execution that will run."""

    id: UUID
    status: Status


class LogLine(msgspec.Struct, frozen=True):
    #: Milliseconds since the start of the execution.
    at_ms: float
    level: str
    text: str


class LogLines(msgspec.Struct, frozen=True):
    items: list[LogLine]
