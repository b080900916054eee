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


class InsufficientGas(InvalidRequest):
    """The wallet has too little GAS for the fees."""

    code = "insufficient_gas"


class QueueFull(TooManyRequests):
    """Too many transactions are waiting; try again later."""

    code = "queue_full"


class TenantPaused(Conflict):
    """The operator has paused this tenant."""

    code = "tenant_paused"
