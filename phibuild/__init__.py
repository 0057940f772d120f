"""phibuild: one Phi checkpoint, a shelf of devices, every artifact built, judged and reported."""

__version__ = "0.1.0"
