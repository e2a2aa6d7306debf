"""A fuzz job: random damage to everything that the library reads. See ``python -m tests.fuzz --help``."""

TARGETS = {
    name.lower(): f"tests.fuzz.{name.lower()}:{name}"
    for name in ("Images", "Tars", "Parquet", "Albums", "Commands")
}
"""The kinds of input, as ``module:Class``."""
