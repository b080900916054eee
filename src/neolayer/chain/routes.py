"""``/api/v1/chain``."""

from litestar import Controller, get, post

from neolayer.chain.read import Reader, ReadRequest, ReadResult
from neolayer.chain.rpc import NodeStatus, RpcClient


class ChainController(Controller):
    path = "/api/v1/chain"
    tags = ("chain",)

    @post("/read", status_code=200, summary="Call a contract without sending anything")
    async def read(self, data: ReadRequest, reader: Reader) -> ReadResult:
        return await reader.read(data)

    @get("/nodes", summary="The Neo node in use")
    async def nodes(self, rpc: RpcClient) -> list[NodeStatus]:
        return [await rpc.status()]
