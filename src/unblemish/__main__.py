"""`python -m unblemish` is the same as the `unblemish` command."""

import sys

from unblemish.cli import main

if __name__ == "__main__":
    sys.exit(main())
