"""JSON-RPC to Neo nodes: failover, batches, and typed answers for the methods that the service uses."""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from typing import Any, Final, Literal

import aiohttp
import msgspec

from neolayer.chain.errors import ExecutionFaulted, NodeUnavailable, RpcError, WrongNetwork
from neolayer.chain.payload import Signer
from neolayer.chain.scripts import build_script
from neolayer.core.types import Hash160, Hash256

log = logging.getLogger(__name__)

#: neo-go refuses larger batches with a parse error (`maxBatchSize` of its request decoder).
MAX_BATCH: Final = 100

#: Error codes of https://github.com/neo-project/proposals/pull/156, neo-go `neorpc/errors.go`.
UNKNOWN_TRANSACTION: Final = -103
UNKNOWN_SCRIPT_CONTAINER: Final = -105
UNKNOWN_HEIGHT: Final = -109


class Version(msgspec.Struct, frozen=True):
    """What a node says of itself and its network."""

    #: Network magic, part of what transactions sign.
    network: int
    user_agent: str
    address_version: int
    ms_per_block: int
    max_transactions_per_block: int
    #: A transaction's ``valid_until_block`` may be at most this far above the height.
    max_valid_until_block_increment: int
    max_traceable_blocks: int
    memory_pool_max_transactions: int
    validators_count: int
    #: Height of activation by the hardfork's name without the prefix ``HF_``.
    hardforks: dict[str, int]

    @classmethod
    def from_json(cls, reply: dict[str, Any]) -> "Version":
        protocol = reply["protocol"]
        forks = protocol.get("hardforks") or []
        return cls(
            network=protocol["network"],
            user_agent=reply["useragent"],
            address_version=protocol["addressversion"],
            ms_per_block=protocol["msperblock"],
            max_transactions_per_block=protocol["maxtransactionsperblock"],
            max_valid_until_block_increment=protocol["maxvaliduntilblockincrement"],
            max_traceable_blocks=protocol["maxtraceableblocks"],
            memory_pool_max_transactions=protocol["memorypoolmaxtransactions"],
            validators_count=protocol["validatorscount"],
            hardforks={fork["name"].removeprefix("HF_"): fork["blockheight"] for fork in forks},
        )


class Block(msgspec.Struct, frozen=True):
    """A block as far as following the chain needs it."""

    index: int
    hash: Hash256
    previous: Hash256
    #: Set by the consensus node; Unix time in ms.
    time_ms: int
    #: In the order of execution.
    transactions: tuple[Hash256, ...]


class InvokeResult(msgspec.Struct, frozen=True):
    """What a script would do if it ran on top of the present height."""

    #: ``HALT`` or ``FAULT``.
    state: str
    #: Datoshi.
    gas_consumed: int
    exception: str | None
    #: Items as Neo's JSON: ``{type, value}``.
    stack: list[Any]
    notifications: list[Any]

    @property
    def halted(self) -> bool:
        return self.state == "HALT"


class ApplicationLog(msgspec.Struct, frozen=True):
    """What a transaction did when its block ran it."""

    hash: Hash256
    #: ``HALT`` or ``FAULT``: then the fees are paid and nothing else happened.
    vmstate: str
    exception: str | None
    #: Datoshi.
    gas_consumed: int
    #: Items as Neo's JSON: ``{type, value}``.
    stack: list[Any]
    #: ``{contract, eventname, state}``. Empty after a FAULT: nodes keep them, but they did not happen.
    notifications: list[Any]

    @property
    def halted(self) -> bool:
        return self.vmstate == "HALT"


SendKind = Literal["accepted", "retry", "funds", "expired", "rejected"]


class SendOutcome(msgspec.Struct, frozen=True):
    """A node's answer to a transaction.

    ``accepted``: pooled now, pooled before (−503) or already in a block (−501).
    ``retry``: its memory pool is full (−502).
    ``funds``: the sender's GAS does not cover the fees of this and its other pooled transactions (−511).
    ``expired``: past ``valid_until_block``, or that is too far ahead (−510).
    ``rejected``: never, as it stands.
    """

    kind: SendKind
    node_code: int | None = None
    message: str = ""
    #: Another attempt, whose answer was lost, may have got it into a node's pool before: then a refusal
    #: does not prove that it will not be included.
    ambiguous: bool = False


_SEND_KINDS: Final[dict[int, SendKind]] = {
    **dict.fromkeys(range(-512, -499), "rejected"),
    -32602: "rejected",  # not a transaction
    -501: "accepted",
    -503: "accepted",
    -502: "retry",
    -511: "funds",
    -510: "expired",
}


class NodeStatus(msgspec.Struct, frozen=True):
    """For health checks."""

    url: str
    #: Index of the latest block; None when no node answers.
    height: int | None
    error: str | None = None


class RpcClient:
    """One HTTP session to one of several nodes of one network.

    Stays with the node that answered last; goes to the next one on a transport failure, a timeout, HTTP 429
    or 5xx, or a reply that is not JSON-RPC. A node is asked for its network before its first use and after
    each failure; the first one sets the network, and one of another network is not used.
    Belongs to the event loop it is first used in. Close with `aclose`.
    """

    def __init__(self, urls: Sequence[str], *, timeout_s: float = 10.0, connections: int = 64) -> None:
        """
        Args:
            urls: ``http://host:port``, best first.
            timeout_s: for one attempt at one node.
            connections: kept open at most, to all nodes together.
        """
        if not urls:
            raise ValueError("at least one node is needed")
        self.urls = tuple(url.rstrip("/") for url in urls)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._current = 0
        self._versions: dict[str, Version] = {}
        self._network: int | None = None

    def __repr__(self) -> str:
        return f"<RpcClient {self.url} network={self._network}>"

    @property
    def url(self) -> str:
        """The node in use."""
        return self.urls[self._current]

    @property
    def session(self) -> aiohttp.ClientSession:
        """Also for WebSockets to the same nodes."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # --- the two ways to ask ---

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """The ``result`` of one call.

        Raises:
            RpcError: the node refused it.
            NodeUnavailable: no node answered.
            WrongNetwork: no node answered but of another network.
        """
        reply, _ = await self._ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return _result(reply)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """The results of many calls in their order, an `RpcError` in the place of a refused one.

        One HTTP request for each `MAX_BATCH` calls.

        Raises:
            NodeUnavailable, WrongNetwork: as `call`; then all of them count as not made.
        """
        results: list[Any] = []
        for start in range(0, len(calls), MAX_BATCH):
            requests = [
                {"jsonrpc": "2.0", "id": index, "method": method, "params": params}
                for index, (method, params) in enumerate(calls[start : start + MAX_BATCH])
            ]
            answer, _ = await self._ask(requests)
            replies = {reply.get("id"): reply for reply in answer}
            for request in requests:
                try:
                    results.append(_result(replies[request["id"]]))
                except RpcError as error:
                    results.append(error)
        return results

    async def _ask(self, request: dict[str, Any] | list[dict[str, Any]]) -> tuple[Any, bool]:
        """The reply, and whether an earlier attempt may have reached a node before it failed."""
        body = msgspec.json.encode(request)
        failures: list[str] = []
        strangers = 0
        maybe_reached = False
        first = self._current
        for step in range(len(self.urls)):
            position = (first + step) % len(self.urls)
            url = self.urls[position]
            posted = False
            try:
                await self._check(url)
                posted = True
                reply, repeated = await self._post(url, body, request)
            except WrongNetwork as error:
                strangers += 1
                failures.append(error.detail)
                continue
            except _NodeFailed as failure:
                maybe_reached |= posted
                self._versions.pop(url, None)
                failures.append(f"{url}: {failure}")
                continue
            if position != first and self._current == first:
                log.warning("left Neo node %s for %s: %s", self.urls[first], url, "; ".join(failures))
            self._current = position
            return reply, maybe_reached or repeated
        if strangers == len(self.urls):
            raise WrongNetwork("; ".join(failures))
        raise NodeUnavailable("; ".join(failures))

    async def _check(self, url: str) -> Version:
        if (known := self._versions.get(url)) is not None:
            return known
        request = {"jsonrpc": "2.0", "id": 1, "method": "getversion", "params": []}
        reply, _ = await self._post(url, msgspec.json.encode(request), request)
        try:
            version = Version.from_json(_result(reply))
        except (RpcError, KeyError, TypeError) as error:
            raise _NodeFailed(f"getversion: {error}") from None
        if self._network is None:
            self._network = version.network
        if version.network != self._network:
            raise WrongNetwork(f"{url}: network {version.network}, expected {self._network}")
        self._versions[url] = version
        return version

    async def _post(
        self, url: str, body: bytes, request: dict[str, Any] | list[dict[str, Any]]
    ) -> tuple[Any, bool]:
        """The reply, and whether the request was sent twice."""
        repeated = False
        try:
            try:
                status, content = await self._exchange(url, body)
            except aiohttp.ServerDisconnectedError:
                # A kept connection that the node closed as idle just now. All our calls may be repeated.
                repeated = True
                status, content = await self._exchange(url, body)
            if status >= 500 or status == 429:
                raise _NodeFailed(f"HTTP {status}")
            reply = _decode(content)
        except TimeoutError:
            raise _NodeFailed(f"no answer within {self._timeout.total} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _NodeFailed(str(error) or type(error).__name__) from None
        except ValueError:
            raise _NodeFailed("the reply is not JSON") from None
        if isinstance(request, list):
            ids = (
                {part.get("id") for part in reply if isinstance(part, dict)} if isinstance(reply, list) else set()
            )
            if ids != {part["id"] for part in request}:
                raise _NodeFailed("the reply is not one of a JSON-RPC batch")
        elif not isinstance(reply, dict) or not ("result" in reply or isinstance(reply.get("error"), dict)):
            raise _NodeFailed("the reply is not JSON-RPC")
        return reply, repeated

    async def _exchange(self, url: str, body: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self.session.post(url, data=body, headers=headers, timeout=self._timeout) as response:
            return response.status, await response.read()

    # --- typed methods ---

    async def version(self) -> Version:
        """Of the node in use; cached until that node fails."""
        if (version := self._versions.get(self.url)) is None:
            version = Version.from_json(await self.call("getversion"))
        return version

    async def block_count(self) -> int:
        """The index of the next block."""
        return int(await self.call("getblockcount"))

    async def block_hash(self, index: int) -> Hash256:
        return Hash256.parse(await self.call("getblockhash", [index]))

    async def get_block(self, block: int | Hash256) -> Block:
        """By index or hash."""
        return block_from_json(await self.call("getblock", [_block_id(block), 1]))

    async def get_blocks(self, first: int, count: int) -> list[Block]:
        """Blocks in a row, as many as the node has, in one HTTP request (if up to `MAX_BATCH`)."""
        replies = await self.batch([("getblock", [index, 1]) for index in range(first, first + count)])
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
        params = [base64.b64encode(script).decode(), [signer.to_json() for signer in signers]]
        return invoke_result_from_json(await self.call("invokescript", params))

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
        """Offer a signed transaction. Sending the same bytes twice does no harm.

        Raises:
            NodeUnavailable: ambiguous, a node may have taken it.
        """
        (outcome,) = await self.send_raw_transactions([data])
        if isinstance(outcome, NodeUnavailable):
            raise outcome
        return outcome

    async def send_raw_transactions(self, many: Sequence[bytes]) -> list[SendOutcome | NodeUnavailable]:
        """`send_raw_transaction` of up to `MAX_BATCH` in one HTTP request; `NodeUnavailable` in the place of one
        of which the node said nothing.

        Raises:
            NodeUnavailable: ambiguous for all of them.
        """
        requests = [
            {
                "jsonrpc": "2.0",
                "id": index,
                "method": "sendrawtransaction",
                "params": [base64.b64encode(data).decode()],
            }
            for index, data in enumerate(many)
        ]
        reply, ambiguous = await self._ask(requests if len(requests) > 1 else requests[0])
        replies = {one.get("id"): one for one in reply} if isinstance(reply, list) else {0: reply}
        return [self._send_outcome(replies[index], ambiguous) for index in range(len(many))]

    def _send_outcome(self, reply: dict[str, Any], ambiguous: bool) -> SendOutcome | NodeUnavailable:
        try:
            _result(reply)
        except RpcError as error:
            kind = _SEND_KINDS.get(error.node_code)
            if kind is None:
                # An internal error, a missing method: the node said nothing about the transaction.
                return NodeUnavailable(f"{self.url}: sendrawtransaction: {error.detail}")
            return SendOutcome(kind, error.node_code, error.detail, ambiguous)
        return SendOutcome("accepted")

    async def calculate_network_fee(self, data: bytes) -> int:
        """Datoshi, for a transaction whose witnesses have at least their verification scripts."""
        reply = await self.call("calculatenetworkfee", [base64.b64encode(data).decode()])
        return int(reply["networkfee"])

    async def transaction_height(self, transaction: Hash256) -> int | None:
        """The index of the block it is in; None when it is in none."""
        try:
            return int(await self.call("gettransactionheight", [str(transaction)]))
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
            reply = await self.call("getapplicationlog", [str(transaction)])
        except RpcError as error:
            if error.node_code in (UNKNOWN_SCRIPT_CONTAINER, UNKNOWN_TRANSACTION):
                return None
            raise
        return _application_log(transaction, reply)

    async def application_logs(self, transactions: Sequence[Hash256]) -> list[ApplicationLog]:
        """Of transactions that are in blocks, in their order; one HTTP request for each `MAX_BATCH`.

        Raises:
            NodeUnavailable: the node lacks one of them, so it is behind the one that showed the block.
        """
        replies = await self.batch([("getapplicationlog", [str(hash_)]) for hash_ in transactions])
        logs = []
        for hash_, reply in zip(transactions, replies, strict=True):
            if isinstance(reply, RpcError):
                raise NodeUnavailable(f"{self.url} has no application log of {hash_}: {reply.detail}")
            logs.append(_application_log(hash_, reply))
        return logs

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
            async with asyncio.timeout(self._timeout.total):
                count = await self.block_count()
        except (NodeUnavailable, WrongNetwork, RpcError) as error:
            return NodeStatus(self.url, None, error.detail)
        except TimeoutError:
            return NodeStatus(self.url, None, f"no answer within {self._timeout.total} s")
        return NodeStatus(self.url, count - 1)


class _NodeFailed(Exception):
    """This node gave no usable answer; another may."""


def _decode(content: bytes) -> Any:
    """JSON as nodes write it: contracts put lone surrogates into it, which only the slower decoder takes."""
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return json.loads(content)


def _result(reply: dict[str, Any]) -> Any:
    if error := reply.get("error"):
        raise RpcError(error.get("code", 0), error.get("message", ""), error.get("data"))
    return reply["result"]


def _block_id(block: int | Hash256) -> int | str:
    return block if isinstance(block, int) else str(block)


def block_from_json(block: dict[str, Any]) -> Block:
    """A block of ``getblock`` or of the event ``block_added``."""
    return Block(
        index=block["index"],
        hash=Hash256.parse(block["hash"]),
        previous=Hash256.parse(block["previousblockhash"]),
        time_ms=block["time"],
        transactions=tuple(Hash256.parse(transaction["hash"]) for transaction in block["tx"]),
    )


def invoke_result_from_json(reply: dict[str, Any]) -> InvokeResult:
    """The result of ``invokescript`` or ``invokefunction``."""
    return InvokeResult(
        state=reply["state"],
        gas_consumed=int(reply["gasconsumed"]),
        exception=reply.get("exception"),
        stack=reply["stack"] if isinstance(reply["stack"], list) else [],
        notifications=reply.get("notifications") or [],
    )


def _application_log(transaction: Hash256, reply: dict[str, Any]) -> ApplicationLog:
    execution = reply["executions"][0]
    return ApplicationLog(
        hash=transaction,
        vmstate=execution["vmstate"],
        exception=execution.get("exception"),
        gas_consumed=int(execution["gasconsumed"]),
        stack=execution["stack"] if isinstance(execution["stack"], list) else [],
        notifications=execution["notifications"] if execution["vmstate"] == "HALT" else [],
    )
