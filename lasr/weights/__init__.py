"""Model weights: the table of models, downloads, and reading files safely."""
