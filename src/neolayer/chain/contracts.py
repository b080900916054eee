"""Contracts that calls name: their manifests, kept so that well-formed calls cost no question to a node.

A contract may be replaced at any height. A kept manifest is therefore good enough to let a call pass, since the
simulation judges it anyway, but never to refuse one: before a refusal it is read anew.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from neolayer.chain.abi import Contract, check_calls
from neolayer.chain.errors import BadCall, RpcError, UnknownContract
from neolayer.chain.rpc import RpcClient
from neolayer.chain.scripts import NATIVE_CONTRACTS, Call, parse_contract
from neolayer.core.types import Hash160

#: neo-go `neorpc/errors.go`.
UNKNOWN_CONTRACT: Final = -102
#: Methods and parameters of all kept manifests together, some 200 bytes each.
KEPT: Final = 50_000


class Contracts:
    def __init__(self, rpc: RpcClient, *, kept: int = KEPT) -> None:
        self._rpc = rpc
        self._kept = kept
        #: Least recently used first.
        self._contracts: OrderedDict[Hash160, Contract] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Methods and parameters that are kept."""
        return self._size

    async def check(self, calls: Sequence[Call], *, anew: bool = False) -> None:
        """Refuse well-formed calls that no contract of the chain can take.

        Args:
            anew: read the manifests even where they are kept, as after a FAULT that they may explain.

        Raises:
            UnknownContract, UnknownMethod, BadArgument, BadCallFlags: naming the place, as in
                ``calls[0].args[1]``.
            NodeUnavailable, WrongNetwork, RpcError: as `RpcClient.call`.
        """
        hashes = [parse_contract(call["contract"]) for call in calls]
        wanted = set(hashes)
        kept = set() if anew else wanted & self._contracts.keys()
        await self._read(wanted - kept)
        try:
            check_calls(calls, self._of(calls, hashes))
        except BadCall:
            if not kept:
                raise
            await self._read(wanted)
            check_calls(calls, self._of(calls, hashes))

    async def _read(self, hashes: Iterable[Hash160]) -> None:
        """Keep these contracts as a node has them now."""
        asked = list(hashes)
        replies = await self._rpc.batch([("getcontractstate", [str(hash_)]) for hash_ in asked]) if asked else []
        for hash_, reply in zip(asked, replies, strict=True):
            if (known := self._contracts.pop(hash_, None)) is not None:
                self._size -= known.size
            if not isinstance(reply, RpcError):
                self._contracts[hash_] = contract = Contract.from_json(reply)
                self._size += contract.size
            elif reply.node_code != UNKNOWN_CONTRACT:
                raise reply

    def _of(self, calls: Sequence[Call], hashes: Sequence[Hash160]) -> list[Contract | None]:
        """The contract of each call; None for one that an earlier call may deploy."""
        found: list[Contract | None] = []
        deploys = False
        for index, (call, hash_) in enumerate(zip(calls, hashes, strict=True)):
            if hash_ not in self._contracts and not deploys:
                raise UnknownContract(f"calls[{index}].contract: there is no contract {hash_}")
            found.append(self._contracts.get(hash_))
            deploys |= hash_ == NATIVE_CONTRACTS["ContractManagement"] and call["method"] == "deploy"
        for hash_ in hashes:
            if hash_ in self._contracts:
                self._contracts.move_to_end(hash_)
        while self._size > self._kept:
            _, oldest = self._contracts.popitem(last=False)
            self._size -= oldest.size
        return found
