"""The version of this package, for modules that cannot import the whole package, which imports them in turn."""

__version__ = "0.1.0"
