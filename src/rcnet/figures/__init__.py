"""Pictures: a module for each."""
