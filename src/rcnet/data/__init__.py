"""Image files, folders, data sets and noise. If a data set is missing or damaged, the error says how to get it."""
