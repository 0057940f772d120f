"""What every device must say, for those that tests make up."""

from __future__ import annotations

SOURCES = dict.fromkeys(("memory", "budget", "context_length"), "made up for a test")
