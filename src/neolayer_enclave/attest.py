"""Evidence of what runs here, with a caller's nonce bound in.

The simulated provider's "quote" is a signature by the enclave's own key: it proves possession of that key and
nothing about hardware. Verifiers must refuse it unless they ask for ``simulated`` by name.
"""

import hashlib
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from neolayer_enclave.keys import Keys
from neolayer_enclave.protocol import ATTESTATION_DOMAIN, Evidence

PROVIDER: Final = "simulated"
PACKAGE: Final = Path(__file__).parent
#: What can change the enclave's behaviour. Installed npm packages are named by the lock file's hashes.
MEASURED: Final = (".py", ".mjs", ".cjs", ".js", "package.json", "package-lock.json")
NOT_OURS: Final = frozenset({"node_modules", "__pycache__"})


def measure() -> bytes:
    """SHA-256 over each measured file's path and SHA-256, in the order of the paths."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*"), key=lambda path: path.relative_to(PACKAGE).as_posix()):
        inner = path.relative_to(PACKAGE)
        if path.is_file() and path.name.endswith(MEASURED) and not NOT_OURS.intersection(inner.parts):
            name = inner.as_posix().encode()
            total.update(len(name).to_bytes(4, "little") + name + hashlib.sha256(path.read_bytes()).digest())
    return total.digest()


def evidence(keys: Keys, measurement: bytes, nonce: bytes) -> Evidence:
    """Evidence of the simulated provider."""
    # Everything but the nonce has a fixed length, so the concatenation has one reading.
    report_data = hashlib.sha512(
        ATTESTATION_DOMAIN + nonce + keys.encryption_public + keys.signing_public + measurement
    ).digest()
    r, s = decode_dss_signature(keys.identity.sign(report_data, ec.ECDSA(SHA256())))
    return Evidence(
        provider=PROVIDER,
        report_data=report_data,
        signing_key=keys.signing_public,
        encryption_key=keys.encryption_public,
        measurement=measurement,
        quote=r.to_bytes(32) + s.to_bytes(32),
    )
