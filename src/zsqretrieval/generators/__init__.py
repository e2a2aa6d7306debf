"""Generators: how likely is a text given images, and what text follows them."""
