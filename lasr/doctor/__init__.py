"""Check this machine before a long run."""
