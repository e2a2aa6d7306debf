"""The embedded default encoder and generator, on one backbone."""
