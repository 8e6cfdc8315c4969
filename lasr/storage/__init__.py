"""Object storage and other file systems: reached by address, read by ranges, cached on a disk."""
