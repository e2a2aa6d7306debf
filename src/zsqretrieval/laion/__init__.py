"""Formats of LAION and of the tools around it."""
