"""Lists: ``limit`` and an opaque ``cursor``. Newest first, by UUIDv7."""

import base64
from typing import Annotated, Protocol
from uuid import UUID

import msgspec
from litestar.params import Parameter

from neolayer.core.errors import InvalidRequest

Limit = Annotated[int, Parameter(ge=1, le=100, description="At most this many items.")]
Cursor = Annotated[str | None, Parameter(description="`next` of the page before.")]


class Page[T](msgspec.Struct, frozen=True):
    """One page. ``next`` is null on the last one."""

    items: list[T]
    next: str | None


def encode_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).rstrip(b"=").decode()


def decode_cursor(cursor: str | None) -> UUID:
    """The id before which the page starts; the highest possible one for the first page.

    Raises:
        InvalidRequest: not a cursor of ours.
    """
    if cursor is None:
        return UUID(int=2**128 - 1)
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor + "=="))
    except ValueError:
        raise InvalidRequest("cursor is not one that this API gave out") from None


class Identified(Protocol):
    """What a list may hold: things with an id to go on from."""

    @property
    def id(self) -> UUID: ...


def page[T: Identified](items: list[T], limit: int) -> Page[T]:
    """Make a page of ``items``, fetched with ``limit + 1`` so that it shows whether there are more."""
    if len(items) <= limit:
        return Page(items, None)
    return Page(items[:limit], encode_cursor(items[limit - 1].id))
