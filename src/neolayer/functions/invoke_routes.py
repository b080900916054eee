"""``POST /api/v1/functions/{name}/invoke`` by the framework.

A plain call is answered as ``endpoint.py`` does it, which is faster. Everything else is answered here only.
"""

from typing import Annotated, Any, Final

from litestar import Controller, MediaType, Request, Response, post
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter

from neolayer.api.problems import encode_problem, problem_headers
from neolayer.core.errors import InvalidRequest
from neolayer.core.types import Principal
from neolayer.functions.asynchronous import AsyncExecutions
from neolayer.functions.endpoint import MAX_INPUT_BYTES, check_input
from neolayer.functions.idempotency import IdempotentInvocations
from neolayer.functions.model import Accepted
from neolayer.functions.service import Functions

MAX_KEY: Final = 255
_REPLAYED: Final = "idempotency-replayed"

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Runs the function once, however often the request is sent within 24 hours: later answers are "
        "the first one, with the header `idempotency-replayed: true`. While the first runs: 409 "
        "`idempotency_in_progress`. With another body: 422 `idempotency_key_reused`.",
    ),
]
Prefer = Annotated[
    str | None,
    HeaderParameter(
        name="Prefer",
        description="`respond-async`: answer 202 as soon as the execution is stored, run it later, and again if "
        "it fails.",
    ),
]


class InvokeController(Controller):
    path = "/api/v1/functions"
    tags = ("functions",)

    @post(
        "/{name:str}/invoke",
        status_code=200,
        request_max_body_size=MAX_INPUT_BYTES,
        summary="Call a function: the body is its input, the answer its output",
        description="`name` is a function, for what is live; or `name@alias`, `name@3` for a version, "
        "`name@latest` for the newest one.",
        response_headers=[
            ResponseHeader(name="neolayer-execution", description="Id of the execution.", documentation_only=True),
            ResponseHeader(name="neolayer-start", description="`cold` or `warm`.", documentation_only=True),
            ResponseHeader(
                name=_REPLAYED,
                description="`true` where the execution ran for an earlier request.",
                documentation_only=True,
            ),
        ],
        responses={
            202: ResponseSpec(
                Accepted, description="Stored; the header `Location` tells where to look.", generate_examples=False
            )
        },
    )
    async def invoke(
        self,
        name: str,
        request: Request[Principal, Any, Any],
        principal: Principal,
        functions: Functions,
        idempotent: IdempotentInvocations,
        asynchronous: AsyncExecutions,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> Response[bytes] | Response[Accepted]:
        body = await request.body()
        check_input(body)
        if idempotency_key is not None:
            _check_key(idempotency_key)
        if prefers_async(prefer):
            accepted, replayed = await asynchronous.accept(principal, name, body, idempotency_key)
            headers = {"location": f"/api/v1/executions/{accepted.id}", "preference-applied": "respond-async"}
            headers |= {_REPLAYED: "true"} if replayed else {}
            return Response(accepted, status_code=202, headers=headers)
        if idempotency_key is None:
            execution, result = await functions.invoke(principal, name, body)
            headers = {"neolayer-execution": str(execution), "neolayer-start": "cold" if result.cold else "warm"}
            return Response(result.output, media_type=MediaType.JSON, headers=headers)
        outcome = await idempotent.invoke(principal, name, body, idempotency_key)
        headers = {_REPLAYED: "true"} if outcome.replayed else {}
        if outcome.error is not None:
            headers |= problem_headers(outcome.error)
            content_type = headers.pop("content-type")
            status = outcome.error.status
            return Response(
                encode_problem(outcome.error), status_code=status, media_type=content_type, headers=headers
            )
        headers |= {"neolayer-execution": str(outcome.id), "neolayer-start": "cold" if outcome.cold else "warm"}
        return Response(outcome.output, media_type=MediaType.JSON, headers=headers)


def prefers_async(prefer: str | None) -> bool:
    """RFC 7240: preferences by commas, each with parameters after a semicolon."""
    wanted = (prefer or "").lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in wanted)


def _check_key(key: str) -> None:
    if not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise InvalidRequest(f"Idempotency-Key: expected 1 to {MAX_KEY} printable ASCII characters")
