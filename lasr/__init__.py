"""The front door and the common ground: command line, errors, files, pictures, weights."""
