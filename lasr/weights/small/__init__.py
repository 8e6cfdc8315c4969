"""The small trained models of the profile `offline`, put together from installed packages."""
