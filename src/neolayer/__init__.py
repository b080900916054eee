"""Neo N3 Service Layer: functions in a trusted execution environment and exactly-once transactions."""

__version__ = "0.1.0"
