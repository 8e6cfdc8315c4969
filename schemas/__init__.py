"""The data contract between the pipeline and the trainer."""
