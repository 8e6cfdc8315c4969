"""Write a manifest in the forms that other trainers read: WebDataset shards, or folders of PNGs."""
