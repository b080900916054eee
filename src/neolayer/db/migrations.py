"""Numbered SQL files, applied once each, in order.

``migrations/NNNN_name.sql`` are immutable once released: an applied file whose content changed is refused.
The whole of it runs under one advisory lock, so that processes that start together do not race.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import psycopg

from neolayer.core.errors import ServiceError
from neolayer.db.pool import DatabaseUnavailable

#: Any constant; the key of the advisory lock that serializes migrations.
_LOCK: Final = 0x6E656F6C
_FILE: Final = re.compile(r"^(\d{4})_(\w+)\.sql$")


class MigrationError(ServiceError):
    """The database's schema cannot be brought to this version."""

    code = "migration_failed"


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: bytes

    @property
    def checksum(self) -> bytes:
        return hashlib.sha256(self.sql).digest()


def migrations() -> list[Migration]:
    """All migrations of this version, by number."""
    found = []
    for entry in files("neolayer.db").joinpath("migrations").iterdir():
        if match := _FILE.match(entry.name):
            found.append(Migration(int(match[1]), match[2], entry.read_bytes()))
    found.sort(key=lambda migration: migration.number)
    if len({migration.number for migration in found}) < len(found):
        raise MigrationError("two migrations have the same number")
    return found


async def migrate(url: str, known: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing; returns what was applied now.

    Args:
        known: all migrations of this version, if not those that come with it.

    Raises:
        MigrationError: an applied migration was changed, or the database is of a newer version.
        DatabaseUnavailable: no connection.
    """
    try:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=10)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"no connection to the database: {str(error).strip()}") from error
    async with connection:
        await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number integer PRIMARY KEY, name text NOT NULL,"
            " checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        rows = await (await connection.execute("SELECT number, checksum FROM schema_migrations")).fetchall()
        applied: dict[int, bytes] = {number: bytes(checksum) for number, checksum in rows}
        known = migrations() if known is None else known
        if newer := set(applied) - {migration.number for migration in known}:
            raise MigrationError(
                f"the database has migration {max(newer)}, this version has {len(known)} others: upgrade neolayer"
            )
        fresh = []
        for migration in known:
            if migration.number in applied:
                if applied[migration.number] != migration.checksum:
                    raise MigrationError(f"migration {migration.number:04d}_{migration.name} was changed")
                continue
            try:
                async with connection.transaction():
                    await connection.execute(migration.sql)
                    await connection.execute(
                        "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                        (migration.number, migration.name, migration.checksum),
                    )
            except psycopg.Error as error:
                label = f"{migration.number:04d}_{migration.name}"
                raise MigrationError(f"migration {label}: {str(error).strip()}") from error
            fresh.append(migration)
        return fresh
