"""The version, for those that say which rcnet made something."""

__version__ = "0.2.0"
