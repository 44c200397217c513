"""`python -m raymlp` is the command line."""

from raymlp.cli import main

main()
