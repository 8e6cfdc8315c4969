"""The photographs of a build: found, named, and compared with those of earlier builds."""
