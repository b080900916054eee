"""What `/health/ready` says of the enclave is what the enclave says of itself."""

from tests.system import NewSystem, System


async def enclave_of(system: System) -> dict[str, object]:
    _, _, ready = await system.raw("GET", "/health/ready")
    return next(dict(part["detail"]) for part in ready["parts"] if part["name"] == "enclave")


async def test_private_egress_shows_in_readiness(system: System, new_system: NewSystem) -> None:
    assert (await enclave_of(system))["egress_allow_private"] is False
    open_system = await new_system(egress_allow_private="true")
    assert (await enclave_of(open_system))["egress_allow_private"] is True
