"""``/api/v1/transactions``."""

from typing import Annotated, Literal
from uuid import UUID

from litestar import Controller, Response, get, post, put
from litestar.params import HeaderParameter, QueryParameter

from neolayer.api.paging import Cursor, Limit, Page, decode_cursor, page
from neolayer.core.ids import parse_id
from neolayer.core.types import Principal, gas_parse
from neolayer.transactions.errors import TransactionNotFound
from neolayer.transactions.limits import FeeLimits, LimitsRequest, LimitsView
from neolayer.transactions.model import (
    AttemptList,
    CancelRequest,
    EventList,
    SpeedUpRequest,
    State,
    TransactionRequest,
    TransactionView,
)
from neolayer.transactions.replace import Replacements
from neolayer.transactions.service import Transactions
from neolayer.transactions.waiting import MAX_WAIT_S, Waiting
from neolayer.wallets.service import Wallets

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="The same key with the same body gives the same transaction, however often it is sent.",
    ),
]


def _datoshi(max_fee: str | None) -> int | None:
    return None if max_fee is None else gas_parse(max_fee, "max_fee")


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
    async def show(
        self,
        transaction_id: str,
        principal: Principal,
        waiting: Waiting,
        wait: Annotated[
            float, QueryParameter(ge=0, le=MAX_WAIT_S, description="Seconds to wait for a change of its state.")
        ] = 0,
        after: Annotated[
            int | None, QueryParameter(ge=0, description="`event` of what was seen last: a later one is a change.")
        ] = None,
        until: Annotated[
            Literal["change", "final"], QueryParameter(description="What is waited for: `final`, its last state.")
        ] = "change",
    ) -> TransactionView:
        return await waiting.show(principal.tenant_id, _id(transaction_id), wait, after, final=until == "final")

    @post("/{transaction_id:str}/cancel", status_code=202, summary="Cancel it, if that is in time")
    async def cancel(
        self,
        transaction_id: str,
        principal: Principal,
        transactions: Transactions,
        replacements: Replacements,
        data: CancelRequest | None = None,
    ) -> TransactionView:
        id, request = _id(transaction_id), data or CancelRequest()
        await replacements.cancel(principal.tenant_id, id, _datoshi(request.max_fee))
        return await transactions.show(principal.tenant_id, id)

    @post("/{transaction_id:str}/speed-up", status_code=202, summary="Pay more, to be included sooner")
    async def speed_up(
        self,
        transaction_id: str,
        principal: Principal,
        transactions: Transactions,
        replacements: Replacements,
        data: SpeedUpRequest | None = None,
    ) -> TransactionView:
        id, request = _id(transaction_id), data or SpeedUpRequest()
        await replacements.speed_up(principal.tenant_id, id, request.speed, _datoshi(request.max_fee))
        return await transactions.show(principal.tenant_id, id)

    @get("/{transaction_id:str}/attempts", summary="On-chain transactions that were signed for it")
    async def attempts(self, transaction_id: str, principal: Principal, transactions: Transactions) -> AttemptList:
        return AttemptList(await transactions.attempts(principal.tenant_id, _id(transaction_id)))

    @get("/{transaction_id:str}/events", summary="Every change of its state, with time and cause")
    async def events(self, transaction_id: str, principal: Principal, transactions: Transactions) -> EventList:
        return EventList(await transactions.events(principal.tenant_id, _id(transaction_id)))


class LimitsController(Controller):
    path = "/api/v1/wallets/{wallet:str}/limits"
    tags = ("wallets",)

    @get(summary="What a wallet may spend on fees, and what it has spent today")
    async def show(self, wallet: str, principal: Principal, wallets: Wallets, limits: FeeLimits) -> LimitsView:
        return await limits.view(await wallets.find(principal.tenant_id, wallet))

    @put(summary="Limit what a wallet spends on fees", description="A limit that is left out is none.")
    async def change(
        self, wallet: str, data: LimitsRequest, principal: Principal, wallets: Wallets, limits: FeeLimits
    ) -> LimitsView:
        return await limits.set(await wallets.find(principal.tenant_id, wallet), data)
