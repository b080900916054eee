"""Everything that talks Neo N3: RPC, scripts, payloads, fees, the block follower and a private network."""
