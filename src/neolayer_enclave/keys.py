"""The keys of this enclave, all derived from one sealing root.

The simulated provider keeps the root in a file of the state folder. It protects nothing from whoever can read
that file, which is what "simulated" says; a hardware provider puts the root in its place and nothing else changes.
"""

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ROOT_BYTES: Final = 32
ROOT_FILE: Final = "sealing.key"
#: Order of the group of secp256r1, FIPS 186-4 D.1.2.3.
P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
#: 128 bits more than the order: reducing modulo the order then leaves no measurable bias (FIPS 186-5 A.2.1).
P256_SEED_BYTES: Final = 48


class BadRoot(Exception):
    """The sealing root is missing where it must be, unreadable, exposed or damaged."""


class SecretKeys:
    """The keys that seal the secrets of functions: one an epoch, so that a rotation changes the key of all."""

    def __init__(self, root: bytes) -> None:
        # Epoch 0 has the label of the time before there were epochs.
        self.of = lru_cache(16)(
            lambda epoch: AESGCM(_expand(root, f"seal/secret/{epoch}" if epoch else "seal/secret", 32))
        )


@dataclass(frozen=True, slots=True)
class Keys:
    secrets: SecretKeys
    #: Seals the private keys of wallets.
    wallets: AESGCM
    #: Signs evidence, secp256r1.
    identity: ec.EllipticCurvePrivateKey
    #: What clients encrypt to.
    encryption: x25519.X25519PrivateKey
    #: Authenticates V8's code cache, 32 bytes.
    code: bytes

    @property
    def signing_public(self) -> bytes:
        """Compressed, 33 bytes."""
        return self.identity.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)

    @property
    def encryption_public(self) -> bytes:
        """Raw, 32 bytes."""
        return self.encryption.public_key().public_bytes_raw()


def derive(root: bytes) -> Keys:
    """Same root, same keys."""
    seed = int.from_bytes(_expand(root, "identity", P256_SEED_BYTES))
    return Keys(
        secrets=SecretKeys(root),
        wallets=AESGCM(_expand(root, "seal/wallet", 32)),
        identity=ec.derive_private_key(seed % (P256_ORDER - 1) + 1, ec.SECP256R1()),
        encryption=x25519.X25519PrivateKey.from_private_bytes(_expand(root, "encryption", 32)),
        code=_expand(root, "code", 32),
    )


def simulated_root(state: Path) -> bytes:
    """The root of the simulated provider; made at the first start.

    Raises:
        BadRoot: the file cannot be made or read, has another length, or others may read it.
    """
    path = state / ROOT_FILE
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            root = file.read(ROOT_BYTES + 1)
    except OSError as error:
        raise BadRoot(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise BadRoot(f"{path} is open to others; run: chmod 600 {path}")
    if len(root) != ROOT_BYTES:
        raise BadRoot(f"{path} does not hold {ROOT_BYTES} bytes; restore it: what was sealed with it needs it")
    return root


def _create(path: Path) -> None:
    # Written aside and linked, so that a crash never leaves a short root under the name that counts.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(ROOT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its root counts
    finally:
        draft.unlink()


def _expand(root: bytes, label: str, length: int) -> bytes:
    info = b"neolayer/enclave/1/" + label.encode()
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(root)
