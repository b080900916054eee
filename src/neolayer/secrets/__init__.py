"""Secrets: ciphertext only. The enclave seals them and alone reads them."""
