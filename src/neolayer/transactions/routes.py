"""``/api/v1/transactions``."""

from typing import Annotated
from uuid import UUID

from litestar import Controller, Response, get, post
from litestar.params import HeaderParameter, QueryParameter

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.ids import parse_id
from neolayer.core.types import Principal
from neolayer.transactions.errors import TransactionNotFound
from neolayer.transactions.model import EventList, State, TransactionRequest, TransactionView
from neolayer.transactions.service import Transactions

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key with the same body gives the same transaction, however often it is sent.",
    ),
]


def _id(text: str) -> UUID:
    return parse_id(text, TransactionNotFound, "transaction")


class TransactionsController(Controller):
    path = "/api/v1/transactions"
    tags = ("transactions",)

    @post(status_code=202, summary="Send a transaction; 200 when this idempotency key has one already")
    async def create(
        self,
        data: TransactionRequest,
        principal: Principal,
        transactions: Transactions,
        idempotency_key: IdempotencyKey = None,
    ) -> Response[TransactionView]:
        view, new = await transactions.submit(principal.tenant_id, data, idempotency_key=idempotency_key)
        return Response(view, status_code=202 if new else 200)

    @get(summary="List transactions, newest first")
    async def index(
        self,
        principal: Principal,
        transactions: Transactions,
        in_state: Annotated[State | None, QueryParameter(name="state")] = None,
        limit: Limit = 20,
        cursor: Cursor = None,
    ) -> Page[TransactionView]:
        return page(
            await transactions.recent(principal.tenant_id, in_state, decode_cursor(cursor), limit + 1), limit
        )

    @get("/{transaction_id:str}", summary="One transaction")
    async def show(self, transaction_id: str, principal: Principal, transactions: Transactions) -> TransactionView:
        return await transactions.show(principal.tenant_id, _id(transaction_id))

    @get("/{transaction_id:str}/events", summary="Every change of its state, with time and cause")
    async def events(self, transaction_id: str, principal: Principal, transactions: Transactions) -> EventList:
        return EventList(await transactions.events(principal.tenant_id, _id(transaction_id)))
