"""What became of an execution: as a row of the table, and as the error that a caller gets."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec

from neolayer.core.errors import ServiceError
from neolayer.enclave import ErrorInfo, OutcomeUnknown, Phases, Result
from neolayer.functions.errors import ExecutionFailed
from neolayer.functions.model import Bundle, Call, ExecutionRecord, Status
from neolayer.functions.records import error_json


def record_of(
    bundle: Bundle,
    call: Call,
    result: Result,
    bytes_in: int,
    *,
    status: Status | None = None,
    created: datetime | None = None,
) -> ExecutionRecord:
    """
    Args:
        status: if it is not told by the result alone.
        created: when it was begun, if that is known better than by now.
    """
    failed = result.error
    return ExecutionRecord(
        tenant_id=call.principal.tenant_id,
        id=call.id,
        function_id=bundle.function_id,
        function=bundle.function,
        version=bundle.version,
        status=status or ("failed" if failed else "succeeded"),
        output=None if failed else result.output.decode(),
        error=error_json(failed.code, failed.message, failed.stack) if failed else None,
        logs=result.logs.decode() if result.logs else None,
        cold=result.cold,
        wall_us=result.wall_us,
        cpu_us=result.cpu_us,
        heap_bytes=result.heap_bytes,
        fetches=result.fetches,
        created_at=created or datetime.now(UTC),
        kind=call.kind,
        parent_id=call.parent_id,
        attempt=call.attempt,
        alias=call.alias,
        queue_us=result.queue_us,
        peak_heap_bytes=result.peak_bytes,
        bytes_in=bytes_in,
        bytes_out=None if failed else len(result.output),
        phases=_phases_json(result.phases) if result.phases else None,
    )


def _phases_json(phases: Phases) -> str:
    """The ``phases`` of a record. Only the call that waited for a process to start has a ``process``."""
    taken: dict[str, int] = msgspec.structs.asdict(phases)
    if not taken["process"]:
        del taken["process"]
    return msgspec.json.encode(taken).decode()


def failure(code: str, message: str, *, wall_us: int = 0) -> Result:
    """Of an execution that the enclave told nothing of."""
    return Result(b"", ErrorInfo(code, message), b"", wall_us, 0, 0, 0, 0, cold=False, fetches=0)


def error_of(id: UUID, error: ErrorInfo) -> ServiceError:
    """What the caller gets: the function failed, or the enclave was lost while it ran."""
    if error.code == OutcomeUnknown.code:
        return OutcomeUnknown(error.message, execution=id)
    return ExecutionFailed(error.code, error.message, retryable=error.retryable, stack=error.stack, execution=id)
