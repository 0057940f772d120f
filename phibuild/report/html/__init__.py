"""report.html: a run as a page of its own, and its plots as pictures."""
