"""Evaluation: exact ranks over the whole catalogue, metrics, and the rows of results."""
