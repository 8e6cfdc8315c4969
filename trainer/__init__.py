"""A Parquet manifest to a trained x4 super-resolution network, and its pictures."""
