"""``/api/v1/chain``."""

from litestar import Controller, get, post

from neolayer.chain.read import Reader, ReadRequest, ReadResult
from neolayer.chain.rpc import RpcClient
from neolayer.chain.views import NodesView


class ChainController(Controller):
    path = "/api/v1/chain"
    tags = ("chain",)

    @post("/read", status_code=200, summary="Call a contract without sending anything")
    async def read(self, data: ReadRequest, reader: Reader) -> ReadResult:
        return await reader.read(data)

    @get("/nodes", summary="The Neo nodes: state, height, speed and errors of each")
    async def nodes(self, rpc: RpcClient) -> NodesView:
        await rpc.pool.probed()
        return rpc.nodes()
