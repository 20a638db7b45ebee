"""The results table, printed: python -m jaxneg.results DIR. A door to `jaxneg.report.table`."""

import sys

from jaxneg.report.table import main

if __name__ == "__main__":
    sys.exit(main())
