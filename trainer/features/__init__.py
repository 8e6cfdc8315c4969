"""Show what training changed in the encoders (figure 7 of the paper)."""
