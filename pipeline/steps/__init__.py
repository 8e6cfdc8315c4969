"""Single steps of a build as commands: distance maps, captions, patches of given pictures."""
