"""Parts of `lasr.pictures.find`: what inputs name, and what was found."""
