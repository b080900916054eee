"""``/api/v1/functions`` and ``/api/v1/executions``."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, MediaType, Request, Response, delete, get, post, put
from litestar.datastructures import ResponseHeader
from litestar.params import Parameter

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.ids import parse_id
from neolayer.core.names import NAME
from neolayer.core.types import Principal
from neolayer.functions.endpoint import MAX_INPUT_BYTES, check_input
from neolayer.functions.errors import ExecutionNotFound
from neolayer.functions.model import (
    MAX_SOURCE_BYTES,
    ExecutionView,
    FunctionSpec,
    FunctionView,
    LogLines,
    NewFunction,
)
from neolayer.functions.service import Functions

Name = Annotated[str, Parameter(pattern=NAME)]
#: JSON escapes can make a source up to six times as long.
_DEPLOY_LIMIT_BYTES = 6 * MAX_SOURCE_BYTES + 100_000


class FunctionsController(Controller):
    path = "/api/v1/functions"
    tags = ("functions",)

    @post(request_max_body_size=_DEPLOY_LIMIT_BYTES, summary="Create a function")
    async def create(self, data: NewFunction, principal: Principal, functions: Functions) -> FunctionView:
        spec = FunctionSpec(**{name: getattr(data, name) for name in FunctionSpec.__struct_fields__})
        return await functions.create(principal.tenant_id, data.name, spec)

    @put("/{name:str}", request_max_body_size=_DEPLOY_LIMIT_BYTES, summary="Deploy: create it, or a new version")
    async def deploy(
        self, name: Name, data: FunctionSpec, principal: Principal, functions: Functions
    ) -> FunctionView:
        return await functions.deploy(principal.tenant_id, name, data)

    @get(summary="List functions")
    async def index(
        self, principal: Principal, functions: Functions, limit: Limit = 20, cursor: Cursor = None
    ) -> Page[FunctionView]:
        return page(await functions.recent(principal.tenant_id, decode_cursor(cursor), limit + 1), limit)

    @get("/{name:str}", summary="One function with its source")
    async def show(self, name: str, principal: Principal, functions: Functions) -> FunctionView:
        return await functions.show(principal.tenant_id, name)

    @delete("/{name:str}", summary="Delete a function; its executions stay")
    async def remove(self, name: str, principal: Principal, functions: Functions) -> None:
        await functions.delete(principal.tenant_id, name)


class InvokeController(Controller):
    """The framework's way to invoke: what ``endpoint.py`` does faster, with the same answers."""

    path = "/api/v1/functions"
    tags = ("functions",)

    @post(
        "/{name:str}/invoke",
        status_code=200,
        request_max_body_size=MAX_INPUT_BYTES,
        summary="Call a function: the body is its input, the answer its output",
        response_headers=[
            ResponseHeader(name="neolayer-execution", description="Id of the execution.", documentation_only=True),
            ResponseHeader(name="neolayer-start", description="`cold` or `warm`.", documentation_only=True),
        ],
    )
    async def invoke(
        self, name: str, request: Request[Principal, Any, Any], principal: Principal, functions: Functions
    ) -> Response[bytes]:
        body = await request.body()
        check_input(body)
        execution, result = await functions.invoke(principal, name, body)
        headers = {"neolayer-execution": str(execution), "neolayer-start": "cold" if result.cold else "warm"}
        return Response(result.output, media_type=MediaType.JSON, headers=headers)


def _id(text: str) -> UUID:
    return parse_id(text, ExecutionNotFound, "execution")


class ExecutionsController(Controller):
    path = "/api/v1/executions"
    tags = ("executions",)

    @get(summary="List executions, newest first")
    async def index(
        self,
        principal: Principal,
        functions: Functions,
        function: str | None = None,
        limit: Limit = 20,
        cursor: Cursor = None,
    ) -> Page[ExecutionView]:
        before = decode_cursor(cursor)
        return page(await functions.recent_executions(principal.tenant_id, function, before, limit + 1), limit)

    @get("/{execution_id:str}", summary="One execution")
    async def show(self, execution_id: str, principal: Principal, functions: Functions) -> ExecutionView:
        return await functions.execution(principal.tenant_id, _id(execution_id))

    @get("/{execution_id:str}/logs", summary="What the function logged")
    async def logs(self, execution_id: str, principal: Principal, functions: Functions) -> LogLines:
        return LogLines(await functions.logs(principal.tenant_id, _id(execution_id)))
