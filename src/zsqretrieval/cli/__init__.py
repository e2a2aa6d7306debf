"""The command line: ``zsq``. A face without logic; every command is a few calls into the library."""

from __future__ import annotations

from zsqretrieval.cli.app import app, main

__all__ = ["app", "main"]
