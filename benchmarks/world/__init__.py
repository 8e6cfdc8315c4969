"""A world whose truth is known: what far surfaces look like from near."""
