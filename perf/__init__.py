"""Benchmarks. Figures are compared within one interleaved run only: machines drift."""
