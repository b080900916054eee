"""Functions, versions and executions as the rest of the room and the API see them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from neolayer.core.names import HOST, NAME, SECRET_NAME
from neolayer.enclave import Limits, SealedSecret

Name = Annotated[str, msgspec.Meta(pattern=NAME)]
SecretName = Annotated[str, msgspec.Meta(pattern=SECRET_NAME)]
#: `api.example.com`, `*.example.com`, either with `:port`; `http://…` where plain HTTP is meant.
HostPattern = Annotated[str, msgspec.Meta(pattern=HOST)]
MAX_SOURCE_BYTES = 1_000_000


class FunctionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is deployed. Limits are hard; times in ms, memory in MiB."""

    source: Annotated[str, msgspec.Meta(min_length=1)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=30_000)] = 10_000
    cpu_ms: Annotated[int, msgspec.Meta(ge=10, le=10_000)] = 1_000
    memory_mb: Annotated[int, msgspec.Meta(ge=16, le=512)] = 128
    secrets: Annotated[list[SecretName], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)
    egress: Annotated[list[HostPattern], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=list)


class NewFunction(FunctionSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name


class FunctionView(msgspec.Struct, frozen=True, kw_only=True):
    """A function at its current version. ``source`` is null in lists."""

    id: UUID
    name: str
    version: int
    #: SHA-256 of the source, hex.
    code_hash: str
    timeout_ms: int
    cpu_ms: int
    memory_mb: int
    secrets: list[str]
    egress: list[str]
    created_at: datetime
    updated_at: datetime
    source: str | None = None


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


class ExecutionRecord(msgspec.Struct, frozen=True):
    """A row of ``executions``; fields as its columns."""

    tenant_id: UUID
    id: UUID
    function_id: UUID
    function: str
    version: int
    status: Literal["succeeded", "failed"]
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


class ExecutionView(msgspec.Struct, frozen=True):
    id: UUID
    function: str
    version: int
    status: str
    #: What the function returned; null when it failed.
    output: msgspec.Raw
    #: {code, message, stack}; null when it succeeded.
    error: dict[str, Any] | None
    cold: bool
    wall_ms: float
    cpu_ms: float
    heap_bytes: int
    fetches: int
    created_at: datetime


class LogLine(msgspec.Struct, frozen=True):
    #: Milliseconds since the start of the execution.
    at_ms: float
    level: str
    text: str


class LogLines(msgspec.Struct, frozen=True):
    items: list[LogLine]
