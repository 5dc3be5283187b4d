"""Checks a system against the numbers of its reference implementation."""

from .harness import Case, Probe, Row, compare, find_cases, verify_case

__all__ = ["Case", "Probe", "Row", "compare", "find_cases", "verify_case"]
