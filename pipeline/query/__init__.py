"""SQL on a manifest."""
