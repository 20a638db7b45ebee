"""Why hard negatives help at the top: python -m jaxneg.opauc --out DIR. A door to `jaxneg.evaluation.opauc`."""

import sys

from jaxneg.evaluation.opauc import main

if __name__ == "__main__":
    sys.exit(main())
