"""How the encoders see patches before and after training: figure 7."""
