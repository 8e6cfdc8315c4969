"""What is written beside a manifest: near-duplicates and a data card."""
