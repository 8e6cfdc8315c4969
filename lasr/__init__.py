"""The front door and the common ground: command line, errors, files, pictures, weights."""

__version__ = "0.1.0"
