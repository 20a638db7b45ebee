"""Optimizers: Adam, its row-sparse form for large tables, and moments in fewer bytes."""
