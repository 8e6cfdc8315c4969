"""Models: what there is, where they are on this machine, how they are fetched and read."""
