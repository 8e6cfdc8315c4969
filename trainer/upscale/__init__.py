"""Enlarge pictures with a trained network."""
