"""The report of finished runs: what they found, with honest statistics, in tables, pictures and words."""
