"""Decoders: the bytes of a file → `lasr.pictures.samples.Samples`, one module per format."""
