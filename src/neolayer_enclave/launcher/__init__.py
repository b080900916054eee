"""Builds the walls around a cell and becomes its Node.

A program of its own, `main.main`, run by a bare Python (``-I -S``): nothing of this may happen between fork and
exec of a process with threads. It imports next to nothing, not even typing: that would be half of its time.
"""
