"""``/api/v1/functions``: deploy, versions, aliases."""

from typing import Annotated

from litestar import Controller, delete, get, post, put
from litestar.params import Parameter, PathParameter, QueryParameter

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.names import ALIAS, NAME
from neolayer.core.types import Principal
from neolayer.functions.aliases import Aliases
from neolayer.functions.model import (
    MAX_SOURCE_BYTES,
    AliasList,
    AliasSpec,
    AliasView,
    FunctionSpec,
    FunctionView,
    NewFunction,
    VersionPage,
    VersionView,
)
from neolayer.functions.resolver import MAX_VERSION
from neolayer.functions.service import Functions
from neolayer.functions.versions import Versions

Name = Annotated[str, Parameter(pattern=NAME)]
AliasName = Annotated[str, PathParameter(pattern=ALIAS)]
Number = Annotated[int, PathParameter(ge=1, le=MAX_VERSION)]
#: JSON escapes can make a source up to six times as long.
_DEPLOY_LIMIT_BYTES = 6 * MAX_SOURCE_BYTES + 100_000


class FunctionsController(Controller):
    path = "/api/v1/functions"
    tags = ("functions",)

    @post(request_max_body_size=_DEPLOY_LIMIT_BYTES, summary="Create a function")
    async def create(
        self, data: NewFunction, principal: Principal, function_versions: Versions, functions: Functions
    ) -> FunctionView:
        spec = FunctionSpec(**{name: getattr(data, name) for name in FunctionSpec.__struct_fields__})
        view = await function_versions.create(principal.tenant_id, data.name, spec)
        functions.warm(principal.tenant_id, data.name)
        return view

    @put(
        "/{name:str}",
        request_max_body_size=_DEPLOY_LIMIT_BYTES,
        summary="Deploy: create it, or a new version",
        description="The new version is live at once, unless the alias `live` is pinned or `hold` is set.",
    )
    async def deploy(
        self,
        name: Name,
        data: FunctionSpec,
        principal: Principal,
        function_versions: Versions,
        functions: Functions,
    ) -> FunctionView:
        view = await function_versions.deploy(principal.tenant_id, name, data)
        if not data.hold:
            functions.warm(principal.tenant_id, name)
        return view

    @get(summary="List functions")
    async def index(
        self, principal: Principal, function_versions: Versions, limit: Limit = 20, cursor: Cursor = None
    ) -> Page[FunctionView]:
        return page(await function_versions.recent(principal.tenant_id, decode_cursor(cursor), limit + 1), limit)

    @get("/{name:str}", summary="One function with the source of its latest version")
    async def show(self, name: str, principal: Principal, function_versions: Versions) -> FunctionView:
        return await function_versions.show(principal.tenant_id, name)

    @delete("/{name:str}", summary="Delete a function; its executions stay, queued ones fail")
    async def remove(self, name: str, principal: Principal, function_versions: Versions) -> None:
        await function_versions.delete(principal.tenant_id, name)

    # --- versions ---

    @get("/{name:str}/versions", summary="List a function's versions, newest first")
    async def version_index(
        self,
        name: str,
        principal: Principal,
        function_versions: Versions,
        limit: Limit = 20,
        cursor: Annotated[
            int, QueryParameter(ge=1, le=MAX_VERSION, description="`next` of the page before.")
        ] = MAX_VERSION,
    ) -> VersionPage:
        return await function_versions.versions(principal.tenant_id, name, cursor, limit)

    @get("/{name:str}/versions/{number:int}", summary="One version with its source")
    async def version_show(
        self, name: str, number: Number, principal: Principal, function_versions: Versions
    ) -> VersionView:
        return await function_versions.version(principal.tenant_id, name, number)

    # --- aliases ---

    @get("/{name:str}/aliases", summary="List a function's aliases, `live` and `latest` included")
    async def alias_index(self, name: str, principal: Principal, function_aliases: Aliases) -> AliasList:
        return AliasList(await function_aliases.all(principal.tenant_id, name))

    @put(
        "/{name:str}/aliases/{alias:str}",
        summary="Switch an alias, or make it",
        description="One write: every call that begins after the answer sees it, at other API processes within "
        "milliseconds. `live` is what a call of the plain name runs; setting it pins it, so that deploys no "
        "longer change it. Shares are exact: of as many calls as the weights' sum each version gets its weight.",
    )
    async def alias_put(
        self,
        name: str,
        alias: AliasName,
        data: AliasSpec,
        principal: Principal,
        function_aliases: Aliases,
        functions: Functions,
    ) -> AliasView:
        view = await function_aliases.put(principal.tenant_id, name, alias, data.versions)
        for share in data.versions:
            functions.warm(principal.tenant_id, f"{name}@{share.version}")
        return view

    @delete("/{name:str}/aliases/{alias:str}", summary="Delete an alias; `live` then follows the latest deploy")
    async def alias_remove(
        self, name: str, alias: AliasName, principal: Principal, function_aliases: Aliases
    ) -> None:
        await function_aliases.delete(principal.tenant_id, name, alias)
