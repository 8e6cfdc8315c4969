"""The networks: RRDB, the encoders, VGG; reading and writing their files."""
