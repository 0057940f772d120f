"""`python -m phibuild`."""

import sys

try:
    from phibuild.cli import main
except KeyboardInterrupt:  # before there is anything that could say so
    sys.exit(130)

main()
