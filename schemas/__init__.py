"""What the two programs share: the data contract, named weights, the CLIP and the command line."""
