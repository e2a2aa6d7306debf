"""Timings of the indexes and of the scoring engine, and comparisons with other libraries."""
