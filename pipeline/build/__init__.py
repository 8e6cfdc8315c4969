"""A build: what is done, what is left, shards at work, parts that become the manifest."""
