"""Sequence models: item sequences in, one hidden state per position out."""
