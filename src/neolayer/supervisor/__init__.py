"""Starts the parts of the system on one machine as child processes, watches them and stops them."""
