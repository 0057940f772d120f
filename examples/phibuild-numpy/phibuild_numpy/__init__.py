"""A backend of phibuild: raw NumPy arrays."""
