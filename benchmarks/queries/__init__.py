"""Ready questions and the report on manifests of up to ten million rows, local and on S3."""
