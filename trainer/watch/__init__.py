"""What a user sees of a training run while it runs, and what it will cost."""
