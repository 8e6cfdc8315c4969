"""Score methods on the same pictures, and draw the results."""
