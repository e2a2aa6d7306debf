"""Dialogs that ask clarifying questions."""
