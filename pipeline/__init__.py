"""Photographs to a Parquet manifest of far (LR) and near (HR) patches with captions."""
