"""Training: one step, many of them in one program, and batches cut by length."""
