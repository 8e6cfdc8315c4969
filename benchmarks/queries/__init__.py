"""Ready questions and the report on manifests of up to ten million rows, from a disk and from S3."""
