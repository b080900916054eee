"""Is it alive, is it ready, and which part is not."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec
from litestar import Response, get

from neolayer.core.errors import ServiceError

#: A part that does not answer within this time counts as down; seconds.
PROBE_TIMEOUT_S = 2.0

#: Returns what is worth showing of a healthy part; raises when it is not.
type Probe = Callable[[], Awaitable[dict[str, Any]]]


class Part(msgspec.Struct, frozen=True):
    name: str
    state: Literal["up", "down"]
    #: Whether requests fail without it. A cache that is down only slows things.
    required: bool
    latency_ms: float
    detail: dict[str, Any]


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    parts: list[Part]


class HealthChecks:
    """Probes of all parts, run together."""

    def __init__(self, required: Mapping[str, Probe], optional: Mapping[str, Probe]) -> None:
        self._required = required
        self._optional = optional

    async def run(self) -> Readiness:
        parts = await asyncio.gather(
            *(_run(name, probe, required=True) for name, probe in self._required.items()),
            *(_run(name, probe, required=False) for name, probe in self._optional.items()),
        )
        return Readiness(all(part.state == "up" for part in parts if part.required), list(parts))


async def _run(name: str, probe: Probe, *, required: bool) -> Part:
    start = time.perf_counter()
    state: Literal["up", "down"] = "up"
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            detail = await probe()
    except TimeoutError:
        state, detail = "down", {"error": f"no answer within {PROBE_TIMEOUT_S:g} s"}
    except ServiceError as error:
        state, detail = "down", {"error": error.detail, "code": error.code}
    except Exception as error:  # noqa: BLE001, RUF100 - a probe's failure is its answer
        state, detail = "down", {"error": f"{type(error).__name__}: {error}"}
    return Part(name, state, required, round((time.perf_counter() - start) * 1000, 2), detail)


@get("/health/live", tags=["health"], summary="The process answers", sync_to_thread=False)
def live() -> dict[str, str]:
    return {"status": "alive"}


@get("/health/ready", tags=["health"], summary="State of each part; 503 while a required one is down")
async def ready(checks: HealthChecks) -> Response[Readiness]:
    readiness = await checks.run()
    return Response(readiness, status_code=200 if readiness.ready else 503)
