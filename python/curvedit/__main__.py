"""``python -m curvedit``."""

import sys

from curvedit.cli import main

if __name__ == "__main__":
    sys.exit(main())
