"""The data contract between the two programs, and nothing else."""
