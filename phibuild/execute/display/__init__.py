"""How a build looks while it runs: what is known of it, and the ways to show it."""
