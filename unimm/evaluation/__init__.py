"""Evaluation: metrics, benchmarks, and the exact judge of the built-in world Shapes."""
