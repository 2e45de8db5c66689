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
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "vitp":
            raise
        what = f"the package {error.name} is missing, so this environment has no whole install of vitp"
        fix = "pip install vitp; where the runtime of exported models is all that is wanted: python -m vitp.runtime MODEL IMAGE"
        print(f"error: {what}; {fix}", file=sys.stderr)
        sys.exit(2)
    main()


if __name__ == "__main__":
    run()
