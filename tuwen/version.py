"""The release, once, for all of the code and for the package's metadata."""

__version__ = "0.2.0.dev0"
