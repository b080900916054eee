"""`python -m perf.canaries` on a smaller scale: no tenant's secret shows anywhere."""

import base64

from perf.canaries import CANARY, FUNCTIONS, WRITTEN_OTHERWISE, Findings, run

from tests.system import NewSystem


async def test_no_secret_of_any_tenant_shows_anywhere(new_system: NewSystem) -> None:
    system = await new_system()
    findings = await run(system, tenants=10, calls=1_200)
    assert findings.leaks == []
    assert findings.calls == 1_200
    assert findings.failed_as_meant == 1_200 * 2 // len(FUNCTIONS)


def test_the_search_finds_what_it_looks_for() -> None:
    canary = "canary-0123456789abcdef0123456789abcdef"
    assert CANARY.search(f"x{canary}y")
    written = [base64.b64encode(b"x" * offset + canary.encode()).decode() for offset in range(6)]
    for text in (*written, canary.encode().hex(), canary.replace("-", "%2D")):
        findings = Findings()
        findings.look_through("here", f"<{text}>")
        assert findings.leaks, text
        assert WRITTEN_OTHERWISE.search(text)
