"""``/api/v1/attestation``."""

import base64
from typing import Annotated, Literal

import msgspec
from litestar import Controller, get
from litestar.params import Parameter

from neolayer.core.errors import InvalidRequest
from neolayer.enclave.client import EnclaveClient

#: As much as the hardware providers' report data leaves room to hash.
MAX_NONCE_BYTES = 64


class Attestation(msgspec.Struct, frozen=True):
    """Evidence of what runs in the enclave. Byte strings are base64.

    ``report_data`` is SHA-512 over a domain, the nonce, both public keys and the measurement; ``quote`` vouches
    for it. Of type ``simulated`` the quote is a signature by ``signing_key`` and proves nothing about hardware.
    """

    type: str
    simulated: bool
    nonce: str
    report_data: str
    #: secp256r1, compressed.
    signing_key: str
    #: X25519.
    encryption_key: str
    #: SHA-256 over the measured files.
    measurement: str
    quote: str
    format: Literal["neolayer/attestation/v1"] = "neolayer/attestation/v1"


class AttestationController(Controller):
    path = "/api/v1/attestation"
    tags = ("enclave",)

    @get(summary="Evidence with the caller's nonce bound in")
    async def attest(
        self,
        enclave: EnclaveClient,
        nonce: Annotated[str, Parameter(description="Up to 64 fresh random bytes, base64.")] = "",
    ) -> Attestation:
        try:
            raw = base64.b64decode(nonce.replace("-", "+").replace("_", "/"), validate=True)
        except ValueError:
            raise InvalidRequest("nonce is not base64") from None
        if len(raw) > MAX_NONCE_BYTES:
            raise InvalidRequest(f"nonce has {len(raw)} bytes, at most {MAX_NONCE_BYTES} are taken")
        evidence = await enclave.attest(raw)
        return Attestation(
            type=evidence.provider,
            simulated=evidence.provider == "simulated",
            nonce=_text(raw),
            report_data=_text(evidence.report_data),
            signing_key=_text(evidence.signing_key),
            encryption_key=_text(evidence.encryption_key),
            measurement=_text(evidence.measurement),
            quote=_text(evidence.quote),
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
