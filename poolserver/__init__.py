"""The production server for Python's socketserver."""

__version__ = "0.1.0"
