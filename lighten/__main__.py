"""`python -m lighten`, and `torchrun -m lighten`: the command line."""

import sys

from lighten.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
