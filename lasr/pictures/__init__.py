"""Picture files: find, read and write them."""
