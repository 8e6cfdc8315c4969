"""Share a trained network on the Hugging Face Hub, with a model card."""
