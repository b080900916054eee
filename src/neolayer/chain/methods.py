"""How each JSON-RPC method may be asked. What is not listed is asked once, of one node after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Policy:
    """What is allowed for a call besides asking one node."""

    #: A second node may be asked while the first one has not answered: it only reads, and cheaply.
    hedged: bool = False
    #: Callers that ask the same at the same time share one answer. Not where an answer decides whether a
    #: transaction is lost: there it must be younger than the question.
    shared: bool = False
    #: Times that the nodes are gone through, with a pause between, before `NodeUnavailable`.
    rounds: int = 1


READ: Final = Policy(hedged=True, rounds=2)
SHARED_READ: Final = Policy(hedged=True, shared=True, rounds=2)
#: Callers store the bytes and send them again themselves; `Broadcast` goes through the nodes.
ONCE: Final = Policy()
#: A read that must not be answered by a node behind an event waits for one that has caught up:
#: 0.05 + 0.1 + 0.2 + 0.4 + 0.8 s at most.
FENCED_ROUNDS: Final = 6

_POLICIES: Final = {
    **dict.fromkeys(
        (
            "getblockcount",
            "getrawtransaction",
            "gettransactionheight",
            "getmempool",
            "getrawmempool",
            "calculatenetworkfee",
            "getversion",
        ),
        READ,
    ),
    **dict.fromkeys(
        (
            "getapplicationlog",
            "getbestblockhash",
            "getblock",
            "getblockhash",
            "getblockheader",
            "getblocknotifications",
            "getcontractstate",
            "getnativecontracts",
            "getnep17balances",
            "invokefunction",
            "invokescript",
        ),
        SHARED_READ,
    ),
    "sendrawtransaction": ONCE,
}


def policy_of(calls: Sequence[tuple[str, Sequence[Any]]]) -> Policy:
    """Of a batch: what all of its calls allow."""
    policies = [_POLICIES.get(method, ONCE) for method, _ in calls]
    return Policy(
        hedged=all(policy.hedged for policy in policies),
        shared=all(policy.shared for policy in policies),
        rounds=min(policy.rounds for policy in policies),
    )


def label_of(calls: Sequence[tuple[str, Sequence[Any]]]) -> str:
    """What figures are kept under: few different words, whatever callers ask."""
    first = calls[0][0]
    if any(method != first for method, _ in calls):
        return "mixed batch"
    if first not in _POLICIES:
        return "other"
    return first if len(calls) == 1 else f"{first} batch"
