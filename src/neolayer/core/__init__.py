"""Settings, errors, ids and value types. No I/O."""
