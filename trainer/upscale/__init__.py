"""Upscale pictures with a trained network."""
