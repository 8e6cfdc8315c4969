"""Questions to a manifest in SQL."""
