"""Image folders and noise; a data set is found and checked, or a clear error says what is missing."""
