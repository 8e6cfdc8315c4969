"""Share data sets and networks on the Hugging Face Hub."""
