"""A build: plan, shards at work, finished parts, publication."""
