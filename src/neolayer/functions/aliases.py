"""Names for versions, with weights: what is live, and what is tried on a part of the calls."""

from typing import Final
from uuid import UUID

from neolayer.core.errors import InvalidRequest
from neolayer.db.notices import NoticeListener, notify
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.functions.errors import AliasNotFound, FunctionNotFound, VersionNotFound
from neolayer.functions.model import LATEST, LIVE, AliasView, Share
from neolayer.functions.resolver import TOPIC

_SQL: Final = load_queries("neolayer.functions")
#: A round of an alias's calls is kept in memory, see `cache.Choice`.
MAX_WEIGHTS: Final = 1_000


class Aliases:
    def __init__(self, database: Database, notices: NoticeListener) -> None:
        self._database = database
        self._notices = notices

    async def all(self, tenant_id: UUID, name: str) -> list[AliasView]:
        """By name, `latest` and `live` included.

        Raises:
            FunctionNotFound: the tenant has none of this name.
        """
        return (await self.of(tenant_id, name))[1]

    async def of(self, tenant_id: UUID, name: str) -> tuple[UUID, list[AliasView]]:
        """The function's id and `all` its aliases."""
        row = await self._database.fetch_one(_SQL["function"], {"tenant_id": tenant_id, "name": name})
        if row is None:
            raise FunctionNotFound(f"no function {name!r}")
        function_id, latest, deployed = row
        rows = await self._database.fetch(_SQL["aliases"], {"tenant_id": tenant_id, "function_id": function_id})
        found = {alias: AliasView(alias, shares(*pair), True, updated) for alias, *pair, updated in rows}
        newest = [Share(latest)]
        found[LATEST] = AliasView(LATEST, newest, False, deployed)
        found.setdefault(LIVE, AliasView(LIVE, newest, False, deployed))
        return function_id, [found[alias] for alias in sorted(found)]

    async def put(self, tenant_id: UUID, name: str, alias: str, versions: list[Share]) -> AliasView:
        """Make or switch an alias, for all calls that come after it. `live` is pinned by it.

        Raises:
            FunctionNotFound, VersionNotFound: the tenant has none like that.
            InvalidRequest: a version twice, weights that are too fine, or a reserved name.
        """
        numbers, weights = [share.version for share in versions], [share.weight for share in versions]
        if alias == LATEST:
            raise InvalidRequest(f"{LATEST!r} is the newest version and cannot be set")
        if len(set(numbers)) < len(numbers):
            raise InvalidRequest("a version is named twice")
        if sum(weights) > MAX_WEIGHTS:
            raise InvalidRequest(f"the weights are {sum(weights)} together, at most {MAX_WEIGHTS} are possible")
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "name": name}
            row = await (await connection.execute(_SQL["lock_function"], params)).fetchone()
            if row is None:
                raise FunctionNotFound(f"no function {name!r}")
            function_id, latest = row
            if max(numbers) > latest:
                raise VersionNotFound(f"function {name!r} has no version {max(numbers)}, its latest is {latest}")
            values = {"function_id": function_id, "name": alias, "versions": numbers, "weights": weights}
            cursor = await connection.execute(_SQL["put_alias"], params | values)
            written = await cursor.fetchone()
            assert written
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))
        return AliasView(alias, versions, True, written[0])

    async def delete(self, tenant_id: UUID, name: str, alias: str) -> None:
        """Forget an alias; a `live` without a pin follows the latest deploy again.

        Raises:
            FunctionNotFound, AliasNotFound: the tenant has none like that.
        """
        async with self._database.transaction() as connection:
            params = {"tenant_id": tenant_id, "name": name}
            row = await (await connection.execute(_SQL["lock_function"], params)).fetchone()
            if row is None:
                raise FunctionNotFound(f"no function {name!r}")
            values = {"function_id": row[0], "name": alias}
            cursor = await connection.execute(_SQL["delete_alias"], params | values)
            if cursor.rowcount == 0 and alias != LIVE:
                raise AliasNotFound(f"function {name!r} has no alias {alias!r}")
            await notify(connection, TOPIC, str(tenant_id))
        self._notices.dispatch(TOPIC, str(tenant_id))


def shares(versions: list[int], weights: list[int]) -> list[Share]:
    return [Share(version, weight) for version, weight in zip(versions, weights, strict=True)]
