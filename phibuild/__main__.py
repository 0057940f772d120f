"""`python -m phibuild`."""

from phibuild.cli import main

main()
