"""What runs when the service is told to stop."""

import asyncio
import contextlib
import json

import aiohttp

from tests.conftest import NewSystem


async def test_a_call_that_outlasts_the_stop_is_recorded_with_an_unknown_outcome(new_system: NewSystem) -> None:
    system = await new_system()
    source = "export default () => new Promise((resolve) => setTimeout(resolve, 20_000))"
    body = json.dumps({"source": source, "timeout_ms": 30_000}).encode()
    assert (await system.raw("PUT", "/api/v1/functions/patient", body=body))[0] < 300

    async def call() -> None:
        with contextlib.suppress(aiohttp.ClientError):
            await system.raw("POST", "/api/v1/functions/patient/invoke")

    calling = asyncio.ensure_future(call())
    await asyncio.sleep(1)
    await system.stop()
    await calling
    await system.start()
    (execution,) = (await system.get("/executions"))["items"]
    assert (execution["status"], execution["error"]["code"]) == ("failed", "outcome_unknown")
