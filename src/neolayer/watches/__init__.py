"""Contracts that tenants watch: what they notify of becomes news, each once and in the chain's order."""
