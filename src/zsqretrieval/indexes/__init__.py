"""Indexes: find the stored vectors nearest to a query by cosine similarity."""
