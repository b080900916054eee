"""``/api/v1/executions``."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import Controller, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.response import Stream

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.ids import parse_id
from neolayer.core.types import Principal
from neolayer.functions.asynchronous import AsyncExecutions
from neolayer.functions.errors import ExecutionNotFound
from neolayer.functions.follow import FollowedExecution, Followers
from neolayer.functions.history import Filter, History
from neolayer.functions.model import Accepted, ExecutionView, LogLines, Status
from neolayer.functions.resolver import MAX_VERSION

Function = Annotated[str | None, QueryParameter(description="Only of this function, also of a deleted one.")]
InStatus = Annotated[Status | None, QueryParameter(name="status", description="Only in this state.")]
Version = Annotated[int | None, QueryParameter(ge=1, le=MAX_VERSION, description="Only of this version.")]
Code = Annotated[
    str | None, QueryParameter(description="Only with an error of this code, `timeout` for instance.")
]
Since = Annotated[datetime | None, QueryParameter(description="Only those asked for then or later; RFC 3339.")]
Until = Annotated[datetime | None, QueryParameter(description="Only those asked for before; RFC 3339.")]


def _id(text: str) -> UUID:
    return parse_id(text, ExecutionNotFound, "execution")


class ExecutionsController(Controller):
    path = "/api/v1/executions"
    tags = ("executions",)

    @get(summary="List executions, newest first", description="`status=dead` is the list of dead letters.")
    async def index(
        self,
        principal: Principal,
        history: History,
        function: Function = None,
        in_status: InStatus = None,
        version: Version = None,
        code: Code = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 20,
        cursor: Cursor = None,
    ) -> Page[ExecutionView]:
        which = Filter(function, in_status, version, code, since, until)
        return page(await history.recent(principal.tenant_id, which, decode_cursor(cursor), limit + 1), limit)

    @get(
        "/stream",
        summary="Follow executions as they are recorded",
        description="Server-sent events `execution`: {execution, logs}, one whenever an execution was written: "
        "once for a call that was waited for, on each change of status for an asynchronous one. Reconnecting with "
        "`Last-Event-ID` misses none, at whichever API process.",
        media_type="text/event-stream",
        responses={200: ResponseSpec(FollowedExecution, media_type="text/event-stream", generate_examples=False)},
    )
    async def stream(
        self,
        principal: Principal,
        followers: Followers,
        function: Function = None,
        in_status: InStatus = None,
        version: Version = None,
        code: Code = None,
        last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
    ) -> Stream:
        which = Filter(function, in_status, version, code)
        events = await followers.follow(principal.tenant_id, which, last_event_id)
        return Stream(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @get("/{execution_id:str}", summary="One execution")
    async def show(self, execution_id: str, principal: Principal, history: History) -> ExecutionView:
        return await history.execution(principal.tenant_id, _id(execution_id))

    @get("/{execution_id:str}/logs", summary="What the function logged")
    async def logs(self, execution_id: str, principal: Principal, history: History) -> LogLines:
        return LogLines(await history.logs(principal.tenant_id, _id(execution_id)))

    @post("/{execution_id:str}/cancel", status_code=200, summary="Cancel an execution that waits")
    async def cancel(self, execution_id: str, principal: Principal, asynchronous: AsyncExecutions) -> Accepted:
        return await asynchronous.cancel(principal.tenant_id, _id(execution_id))

    @post("/{execution_id:str}/replay", status_code=202, summary="Run a dead execution again, under the same id")
    async def replay(self, execution_id: str, principal: Principal, asynchronous: AsyncExecutions) -> Accepted:
        return await asynchronous.replay(principal.tenant_id, _id(execution_id))
