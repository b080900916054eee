"""Why a transaction is refused or ends without effect."""

from neolayer.core.errors import Conflict, InvalidRequest, NotFound, TooManyRequests


class TransactionNotFound(NotFound):
    """No such transaction."""

    code = "transaction_not_found"


class SimulationFaulted(InvalidRequest):
    """The calls would FAULT, so nothing was sent."""

    code = "simulation_faulted"


class FeeAboveCap(InvalidRequest):
    """The transaction would cost more than its `max_fee`."""

    code = "fee_above_cap"


class DailyCapReached(InvalidRequest):
    """The wallet's fees of this day would be above its limit."""

    code = "daily_cap_reached"


class InsufficientGas(InvalidRequest):
    """The wallet has too little GAS for the fees."""

    code = "insufficient_gas"


class OtherNetwork(InvalidRequest):
    """The transaction is meant for another network."""

    code = "wrong_network"


class TooLate(Conflict):
    """The transaction's state is final."""

    code = "too_late"


class TooManyAttempts(Conflict):
    """The transaction has been replaced so often that one more cannot name all of them."""

    code = "too_many_attempts"


class TransactionBusy(Conflict):
    """The transaction changes just now; try again."""

    code = "transaction_busy"
    retryable = True


class QueueFull(TooManyRequests):
    """Too many transactions are waiting; try again later."""

    code = "queue_full"


class TenantPaused(Conflict):
    """The operator has paused this tenant."""

    code = "tenant_paused"
