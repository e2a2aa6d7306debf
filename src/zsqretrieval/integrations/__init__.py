"""Adapters for other frameworks (``docs/integrations.md``). Each module imports its framework."""
