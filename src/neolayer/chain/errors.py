"""What can go wrong between the service and the chain."""

from typing import Any

from neolayer.core.errors import InvalidRequest, ServiceError, Unavailable


class NodeUnavailable(Unavailable):
    """No Neo node gave a usable answer.

    After `send_raw_transaction` this is ambiguous: a node may have taken the transaction. Sending the same
    bytes again is safe.
    """

    code = "node_unavailable"


class WrongNetwork(ServiceError):
    """The Neo node belongs to another network."""

    code = "wrong_network"
    status = 503


class BlockDisputed(Unavailable):
    """The Neo nodes do not agree on a block: nothing is concluded from it."""

    code = "block_disputed"


class ChainDiverged(ServiceError):
    """The node's chain and the recorded blocks have no block in common."""

    code = "chain_diverged"
    status = 503


class RpcError(ServiceError):
    """The node refused the call: a deterministic answer that another node would give too."""

    code = "rpc_error"
    status = 502

    def __init__(self, node_code: int, message: str, data: Any = None) -> None:
        text = f"{message} ({node_code})" if data in (None, message) else f"{message} ({node_code}): {data}"
        super().__init__(text, node_code=node_code)
        #: As in neo-project/proposals#156 and neo-go `neorpc/errors.go`.
        self.node_code = node_code
        self.message = message
        self.data = data


class ExecutionFaulted(ServiceError):
    """A read-only contract call ended in FAULT."""

    code = "execution_faulted"
    status = 422


class DevnetFailed(ServiceError):
    """The private network cannot be set up or did not do what was asked."""

    code = "devnet_failed"


class BadCall(InvalidRequest):
    """A contract call is malformed."""

    code = "bad_call"


class BadAddress(BadCall):
    """Not a Neo N3 address or account hash."""

    code = "bad_address"


class BadContractHash(BadCall):
    """Not a contract hash or the name of a native contract."""

    code = "bad_contract_hash"


class BadMethod(BadCall):
    """Not a method that a contract call can name."""

    code = "bad_method"


class UnknownContract(BadCall):
    """No contract of this hash is deployed."""

    code = "unknown_contract"


class UnknownMethod(BadCall):
    """The contract has no such method, or none with so many arguments."""

    code = "unknown_method"


class BadArgument(BadCall):
    """An argument's value does not fit its type, or its type not the contract's manifest."""

    code = "bad_argument"


class BadCallFlags(BadCall):
    """Not a set of call flags."""

    code = "bad_call_flags"


class ScriptTooLarge(BadCall):
    """The calls make a script of more than 65,534 bytes."""

    code = "script_too_large"
