"""Score methods side by side."""
