"""Pictures in and out: found, read, written."""
