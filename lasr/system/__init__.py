"""What Linux, macOS and Windows do differently, in one place."""
