"""Functions: immutable versions, invocation, executions and their logs."""
