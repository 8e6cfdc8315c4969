"""Which format a file has, and what reads it."""
