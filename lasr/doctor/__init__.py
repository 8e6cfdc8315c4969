"""What is wrong with this machine, before a long run finds out."""
