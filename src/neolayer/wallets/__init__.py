"""Wallets: what may be known of keys that live in the enclave."""
