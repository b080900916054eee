"""The chain as Python sees it: typed questions to the nodes and typed answers."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from neolayer.chain.answers import (
    ApplicationLog,
    Block,
    InvokeResult,
    SendKind,
    SendOutcome,
    Version,
    application_log_from_json,
    block_from_json,
    executions_from_json,
    invoke_result_from_json,
)
from neolayer.chain.asking import Asker, Question
from neolayer.chain.broadcast import Broadcast
from neolayer.chain.errors import ExecutionFaulted, NodeUnavailable, RpcError, WrongNetwork
from neolayer.chain.kept import Call, Kept
from neolayer.chain.node import Node
from neolayer.chain.payload import Signer
from neolayer.chain.pool import NodePool, PoolOptions
from neolayer.chain.quorum import Quorum
from neolayer.chain.scripts import build_script
from neolayer.chain.transport import Transport, decode, portions
from neolayer.chain.views import NodesView, view
from neolayer.core.types import Hash160, Hash256

__all__ = [
    "MAX_BATCH",
    "ApplicationLog",
    "Block",
    "InvokeResult",
    "NodeStatus",
    "PoolOptions",
    "RpcClient",
    "SendKind",
    "SendOutcome",
    "Version",
    "block_from_json",
    "invoke_result_from_json",
]

#: neo-go refuses larger batches with a parse error (`maxBatchSize` of its request decoder).
MAX_BATCH: Final = 100

#: Error codes of https://github.com/neo-project/proposals/pull/156, neo-go `neorpc/errors.go`.
UNKNOWN_TRANSACTION: Final = -103
UNKNOWN_SCRIPT_CONTAINER: Final = -105
UNKNOWN_HEIGHT: Final = -109
#: JSON-RPC 2.0: the node does not know the method.
UNKNOWN_RPC_METHOD: Final = -32601

#: dBFT blocks are final, but the only validator of a private network loses its last ones when it is killed (one to
#: four were seen): there a block is final when so many follow.
FINAL_DEPTH: Final = 20
#: An answer of the newest block is given again without asking whether that is still the newest for a quarter of
#: the block time, and at most so long; seconds.
HEAD_AGE_S: Final = 0.25


class NodeStatus(msgspec.Struct, frozen=True):
    """For health checks."""

    url: str
    #: Index of the latest block; None when no node answers.
    height: int | None
    error: str | None = None


class RpcClient:
    """Questions to the nodes of one network, whichever of them is best; see `NodePool` and `Asker`.

    A node is asked for its network before its first use and after its connections were cut; the first one sets
    the network unless the options do, and one of another network is not used.
    Belongs to the event loop it is first used in. Close with `aclose`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_s: float = 10.0,
        connections: int = 64,
        options: PoolOptions | None = None,
    ) -> None:
        """
        Args:
            urls: ``http://host:port``, best first.
            timeout_s: for one attempt at one node.
            connections: kept open at most, to each node.
        """
        if not urls:
            raise ValueError("at least one node is needed")
        options = options or PoolOptions()
        self._options = options
        self._timeout_s = timeout_s
        self._transport = Transport(connections=connections)
        self._kept = Kept(options.keep_bytes) if options.keep else None
        self.pool = NodePool(
            urls,
            self._transport,
            options,
            timeout_s=timeout_s,
            connections=connections,
            disbelieved=self._disbelieve,
        )
        self._asker = Asker(self.pool, self._transport, options, timeout_s=timeout_s)
        self._broadcast = Broadcast(self.pool, self._asker, options)
        #: What the majority of the nodes says.
        self.quorum = Quorum(self.pool, self._asker)

    def __repr__(self) -> str:
        return f"<RpcClient {self.pool.first.name} of {len(self.pool.nodes)} network={self.pool.network}>"

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(node.url for node in self.pool.nodes)

    @property
    def url(self) -> str:
        """The node that is asked first."""
        return self.pool.first.url

    @property
    def session(self) -> aiohttp.ClientSession:
        """Also for WebSockets to the same nodes."""
        return self._transport.session

    async def aclose(self) -> None:
        await self.pool.close()
        await self._asker.close()
        await self._broadcast.close()
        await self._transport.close()

    def nodes(self) -> NodesView:
        """All that is known of the nodes now; see also `NodePool.probed`."""
        return view(self.pool, self._options, kept_bytes=self._kept.size_bytes if self._kept else 0)

    # --- the two ways to ask ---

    async def call(self, method: str, params: Sequence[Any] = (), *, min_height: int | None = None) -> Any:
        """The ``result`` of one call.

        Args:
            min_height: not to be answered by a node that lacks this block; see also `asking.fenced`.

        Raises:
            RpcError: the node refused it.
            NodeUnavailable: no node answered, or none has that block.
            WrongNetwork: no node answered but of another network.
        """
        answer, _ = await self._asker.ask(Question([(method, params)], batch=False, min_height=min_height))
        return answer.replies[0].value()

    async def batch(
        self, calls: Sequence[tuple[str, Sequence[Any]]], *, min_height: int | None = None
    ) -> list[Any]:
        """The results of many calls in their order, an `RpcError` in the place of a refused one.

        One HTTP request for each `MAX_BATCH` calls, or for as many as a node reads at once.

        Raises:
            NodeUnavailable, WrongNetwork: as `call`; then all of them count as not made.
        """
        results: list[Any] = []
        # Two places are for the heights that a fenced batch asks for.
        for part in portions(calls, MAX_BATCH - 2):
            answer, _ = await self._asker.ask(Question(part, batch=True, min_height=min_height))
            for reply in answer.replies:
                try:
                    results.append(reply.value())
                except RpcError as error:
                    results.append(error)
        return results

    async def _final[T](self, call: Call, read: Callable[[Any], T], index_of: Callable[[T], int | None]) -> T:
        """An answer that never changes once the block it is about is final."""
        if self._kept is not None and (kept := self._kept.final(call)) is not None:
            return read(decode(kept))
        answer, node = await self._asker.ask(Question([call], batch=False))
        reply = answer.replies[0]
        value = read(reply.value())
        if self._kept is not None and self._is_final(node, index_of(value)):
            self._kept.keep_final(call, bytes(reply.result), node.url)
        return value

    def _is_final(self, node: Node, index: int | None) -> bool:
        """
        Args:
            index: None when the answer does not tell its block.
        """
        if node.version is None or node.excluded is not None:
            return False
        if node.version.validators_count > 1:
            return True
        return index is not None and node.height is not None and index <= node.height - FINAL_DEPTH

    def _disbelieve(self, node: Node) -> None:
        if self._kept is not None:
            self._kept.forget(node.url)

    # --- typed methods ---

    async def version(self) -> Version:
        """Of the node in use; kept until that node fails."""
        if self.pool.first.version is not None:
            return self.pool.first.version
        answer, node = await self._asker.ask(Question([("getversion", ())], batch=False))
        return node.version or Version.from_json(answer.replies[0].value())

    async def block_count(self) -> int:
        """The index of the next block."""
        return int(await self.call("getblockcount"))

    async def block_hash(self, index: int) -> Hash256:
        return await self._final(("getblockhash", [index]), Hash256.parse, lambda _: index)

    async def get_block(self, block: int | Hash256) -> Block:
        """By index or hash."""
        id_ = block if isinstance(block, int) else str(block)
        return await self._final(("getblock", [id_, 1]), block_from_json, lambda found: found.index)

    async def get_blocks(self, first: int, count: int, *, min_height: int | None = None) -> list[Block]:
        """Blocks in a row, as many as the node has, in one HTTP request (if below `MAX_BATCH` - 2)."""
        calls = [("getblock", [index, 1]) for index in range(first, first + count)]
        replies = await self.batch(calls, min_height=min_height)
        blocks = []
        for reply in replies:
            if isinstance(reply, RpcError):
                if reply.node_code == UNKNOWN_HEIGHT:
                    break
                raise reply
            blocks.append(block_from_json(reply))
        return blocks

    async def invoke_script(self, script: bytes, signers: Sequence[Signer] = ()) -> InvokeResult:
        """Try a script on the node; nothing is sent or changed. A FAULT is a result, not an error."""
        return invoke_result_from_json(await self.call(*_invocation(script, signers)))

    async def invoke_at_head(
        self, script: bytes, signers: Sequence[Signer] = (), *, min_height: int | None = None
    ) -> tuple[InvokeResult, int]:
        """As `invoke_script`, and the index of the block on top of which it ran.

        The same question is answered anew once for each block. The answer may be that of a block which has had
        a successor for `HEAD_AGE_S`; whoever needs the effects of a block gives it as ``min_height``.
        """
        call = _invocation(script, signers)
        question = Question([call], batch=False, min_height=min_height, heights=True)
        if self._kept is not None:
            version = self.pool.first.version
            age_s = HEAD_AGE_S if version is None else min(HEAD_AGE_S, version.ms_per_block / 4000)
            kept = self._kept.at_head(call, min_height=question.min_height, max_age_s=age_s)
            if kept is not None:
                return invoke_result_from_json(decode(kept[0])), kept[1]
        answer, _ = await self._asker.ask(question)
        reply = answer.replies[0]
        result = invoke_result_from_json(reply.value())
        assert answer.before is not None
        assert answer.after is not None
        if self._kept is not None:
            self._kept.heard_height(answer.after)
            if answer.before == answer.after:
                self._kept.keep_at_head(call, bytes(reply.result), answer.after)
        return result, answer.before

    async def invoke_scripts(
        self, scripts: Sequence[tuple[bytes, Sequence[Signer]]]
    ) -> list[InvokeResult | RpcError]:
        """`invoke_script` of many in few HTTP requests; an `RpcError` in the place of a refused one."""
        replies = await self.batch(
            [
                (
                    "invokescript",
                    [base64.b64encode(script).decode(), [signer.to_json() for signer in signers]],
                )
                for script, signers in scripts
            ]
        )
        return [reply if isinstance(reply, RpcError) else invoke_result_from_json(reply) for reply in replies]

    async def mempool_size(self) -> int:
        """Transactions in the node's memory pool."""
        return len(await self.call("getrawmempool"))

    async def send_raw_transaction(self, data: bytes) -> SendOutcome:
        """Offer a signed transaction to several nodes. Sending the same bytes twice does no harm.

        Raises:
            NodeUnavailable: ambiguous, a node may have taken it.
        """
        return await self._broadcast.send(data)

    async def send_raw_transactions(self, many: Sequence[bytes]) -> list[SendOutcome | NodeUnavailable]:
        """`send_raw_transaction` of many in few HTTP requests to each node; a `NodeUnavailable` in the place of
        one of which no node said anything: ambiguous.

        Raises:
            WrongNetwork: all nodes are of another network; ambiguous for all of them.
        """
        outcomes: list[SendOutcome | NodeUnavailable] = []
        calls = [("sendrawtransaction", [base64.b64encode(raw).decode()]) for raw in many]
        for part in portions(calls, MAX_BATCH):
            raws = many[len(outcomes) : len(outcomes) + len(part)]
            outcomes += await self._broadcast.send_many(raws)
        return outcomes

    async def calculate_network_fee(self, data: bytes) -> int:
        """Datoshi, for a transaction whose witnesses have at least their verification scripts."""
        reply = await self.call("calculatenetworkfee", [base64.b64encode(data).decode()])
        return int(reply["networkfee"])

    async def transaction_height(self, transaction: Hash256) -> int | None:
        """The index of the block it is in; None when it is in none."""
        try:
            return await self._final(("gettransactionheight", [str(transaction)]), int, lambda index: index)
        except RpcError as error:
            if error.node_code == UNKNOWN_TRANSACTION:
                return None
            raise

    async def knows(self, transaction: Hash256) -> bool:
        """Whether the node has it, in a block or in its memory pool."""
        try:
            await self.call("getrawtransaction", [str(transaction), 0])
        except RpcError as error:
            if error.node_code == UNKNOWN_TRANSACTION:
                return False
            raise
        return True

    async def application_log(self, transaction: Hash256) -> ApplicationLog | None:
        """None when it is in no block that this node has."""
        try:
            return await self._final(
                ("getapplicationlog", [str(transaction)]),
                lambda reply: application_log_from_json(transaction, reply),
                lambda _: None,
            )
        except RpcError as error:
            if error.node_code in (UNKNOWN_SCRIPT_CONTAINER, UNKNOWN_TRANSACTION):
                return None
            raise

    async def application_logs(self, transactions: Sequence[Hash256]) -> list[ApplicationLog]:
        """Of transactions that are in blocks, in their order; one HTTP request for each `MAX_BATCH`.

        Raises:
            NodeUnavailable: the node lacks one of them: it has lost the block that another one showed.
        """
        return [ran[0] for ran in await self.executions(transactions)]

    async def executions(self, containers: Sequence[Hash256]) -> list[list[ApplicationLog]]:
        """As `application_logs`, and of blocks what they ran themselves: OnPersist and PostPersist."""
        replies = await self.batch([("getapplicationlog", [str(hash_)]) for hash_ in containers])
        executions = []
        for hash_, reply in zip(containers, replies, strict=True):
            if isinstance(reply, RpcError):
                raise NodeUnavailable(f"a node has no application log of {hash_}: {reply.detail}")
            executions.append(executions_from_json(hash_, reply))
        return executions

    async def block_notifications(self, block: Hash256) -> dict[str, list[dict[str, Any]]] | None:
        """``onpersist``, ``application`` and ``postpersist``: each ``{container, contract, eventname, state}`` of
        what ended in HALT, in the chain's order. None where nodes have no such method, as those in C#.

        Unlike application logs it has no results of scripts, which strangers can make hundreds of megabytes long.

        Raises:
            NodeUnavailable: no node has the block.
        """
        try:
            reply: dict[str, Any] = await self.call("getblocknotifications", [str(block)])
        except RpcError as error:
            if error.node_code == UNKNOWN_RPC_METHOD:
                return None
            raise NodeUnavailable(f"a node tells no notifications of block {block}: {error.detail}") from None
        return {part: reply.get(part) or [] for part in ("onpersist", "application", "postpersist")}

    async def ended_in_halt(self, transaction: Hash256) -> bool | None:
        """Of one in a block, without its application log; None where the node does not tell."""
        reply = await self.call("getrawtransaction", [str(transaction), 1])
        state = reply.get("vmstate")
        return None if state is None else state == "HALT"

    async def balance_of(self, token: Hash160, account: Hash160) -> int:
        """In the token's smallest unit.

        Raises:
            ExecutionFaulted: no such NEP-17 token.
        """
        argument = {"type": "Hash160", "value": str(account)}
        result = await self.invoke_script(
            build_script([{"contract": str(token), "method": "balanceOf", "args": [argument]}])
        )
        if not result.halted:
            raise ExecutionFaulted(result.exception)
        return int(result.stack[0]["value"])

    async def status(self) -> NodeStatus:
        """How things stand, without raising."""
        try:
            async with asyncio.timeout(self._timeout_s):
                count = await self.block_count()
        except (NodeUnavailable, WrongNetwork, RpcError) as error:
            return NodeStatus(self.pool.first.name, None, error.detail)
        except TimeoutError:
            return NodeStatus(self.pool.first.name, None, f"no answer within {self._timeout_s} s")
        return NodeStatus(self.pool.first.name, count - 1)


def _invocation(script: bytes, signers: Sequence[Signer]) -> Call:
    return "invokescript", [base64.b64encode(script).decode(), [signer.to_json() for signer in signers]]
