"""Re-rankers: objects with ``score(question, images)``; see :class:`zsqretrieval.search.rerank.Reranker`."""
