"""One HTML page that shows a manifest."""
