"""The version of vitp, and what comes with the package."""

from pathlib import Path

__version__ = "0.1.0"

STARTER = Path(__file__).parent.parent / "assets" / "starter"
"""The starter: a vision-language model in vitp's own layout."""
