"""What the enclave does for running functions: `fetch`, `crypto.subtle`, and passing on what is for the host."""

import asyncio
import struct
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec

from neolayer_enclave import egress, subtle
from neolayer_enclave.run import Run
from neolayer_enclave.subtle import Budget

HOST_FUNCTIONS: Final = {0: "neo.read", 1: "neo.send", 3: "neo.wallet", 4: "functions.invoke"}
#: After one of these a call must not be repeated blindly.
EFFECTS: Final = frozenset({"neo.send", "functions.invoke"})
FETCH: Final = 2
SUBTLE: Final = 16
#: Nobody waits for a fetch any more.
ABORT: Final = 17
#: Length of the JSON text of a `FETCH` or `SUBTLE`; what follows it is the body.
TEXT_LENGTH: Final = struct.Struct("<I")
MAX_FETCHES: Final = 50

_json: Final = msgspec.json.Encoder().encode


class HostFailure(msgspec.Struct, frozen=True):
    """What a function sees of a failed host call."""

    code: str
    message: str


class Services:
    """Serves the calls of one cell."""

    def __init__(self, web: egress.Egress) -> None:
        self._egress = web
        #: Computes for `crypto.subtle`: one thread a tenant, so that none waits for another's data.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="subtle")
        self._aside_bytes = 0

    def close(self) -> None:
        self._aside.shutdown(wait=False, cancel_futures=True)

    def serve(self, run: Run, seq: int, function: int, argument: bytes) -> None:
        """Begin what a function asks for; the answer is delivered to its call.

        Raises:
            ValueError: a cell asks for what there is not.
        """
        if function == FETCH:
            self._work(run, seq, self._fetch(run, seq, *_parts(argument)))
        elif function == SUBTLE:
            self._subtle(run, seq, *_parts(argument))
        elif function == ABORT:
            if run.working and (work := run.working.get(seq)):
                work.cancel()
        elif run.caller is None or function not in HOST_FUNCTIONS:
            raise ValueError(f"a cell asks for function {function}")
        else:
            name = HOST_FUNCTIONS[function]
            run.sent |= name in EFFECTS
            run.caller.host_call(run, seq, name, argument)

    def _work(self, run: Run, seq: int, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        working = run.working = run.working or {}
        working[seq] = task
        task.add_done_callback(lambda _: working.pop(seq, None))

    async def _fetch(self, run: Run, seq: int, argument: bytes, body: bytes) -> None:
        run.fetches = min(run.fetches + 1, 0xFFFF)
        try:
            if run.fetches > MAX_FETCHES:
                raise egress.FetchRefused("too_many_fetches", f"a call may fetch {MAX_FETCHES} times")
            request = egress.decode_request(argument)
            response, content = await self._egress.fetch(
                request, body if request.has_body else None, run.bundle.patterns, run.deadline - time.monotonic()
            )
        except egress.FetchRefused as error:
            run.answer(seq, ok=False, text=_json(HostFailure(error.code, str(error))))
        except msgspec.DecodeError as error:
            run.answer(seq, ok=False, text=_json(HostFailure("invalid_request", str(error))))
        else:
            run.answer(seq, ok=True, text=_json(response), body=content)

    def _subtle(self, run: Run, seq: int, argument: bytes, data: bytes) -> None:
        try:
            operation = subtle.decode(argument)
            run.computed = run.computed or Budget()
            run.computed.spend(len(data))
            if len(data) > subtle.INLINE_BYTES:
                if self._aside_bytes + len(data) > subtle.MAX_ASIDE_BYTES:
                    raise subtle.Refused(
                        "QuotaExceededError", "too much is being computed at once: await some of it"
                    )
                self._aside_bytes += len(data)
                self._work(run, seq, self._subtle_aside(run, seq, operation, data))
                return
            answer = subtle.compute(operation, data)
        except (subtle.Refused, msgspec.DecodeError) as error:
            _refuse(run, seq, error)
        else:
            run.answer(seq, ok=True, text=b"", body=answer)

    async def _subtle_aside(self, run: Run, seq: int, operation: subtle.Operation, data: bytes) -> None:
        work = asyncio.get_running_loop().run_in_executor(self._aside, subtle.compute, operation, data)
        try:
            answer = await work
        except subtle.Refused as error:
            _refuse(run, seq, error)
        else:
            run.answer(seq, ok=True, text=b"", body=answer)
        finally:
            self._aside_bytes -= len(data)


def drop_work(run: Run) -> None:
    """End what works for a call that is over."""
    for task in (run.working or {}).values():
        task.cancel()


def _parts(argument: bytes) -> tuple[bytes, bytes]:
    (length,) = TEXT_LENGTH.unpack_from(argument)
    end = TEXT_LENGTH.size + length
    return argument[TEXT_LENGTH.size : end], argument[end:]


def _refuse(run: Run, seq: int, error: Exception) -> None:
    name = error.name if isinstance(error, subtle.Refused) else "OperationError"
    run.answer(seq, ok=False, text=_json(HostFailure(name, str(error))))
