"""A report on a terminal: what to ship and why, the matrix, what went wrong; within its columns."""
