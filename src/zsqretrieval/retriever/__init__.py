"""The facade: a retriever over an album of images."""

from zsqretrieval.retriever.retriever import Retriever

__all__ = ["Retriever"]
