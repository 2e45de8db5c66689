"""`python -m vitp`."""

from vitp.cli import main

main()
