"""`python -m vitp`, and the `vitp` command."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line and exit; Ctrl-C while it is still being loaded is no reason for a stack trace."""
    try:
        from vitp.cli import main
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
