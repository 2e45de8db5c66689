"""The version of vitp."""

__version__ = "0.1.0"
