"""A run's results: the files of its folder, written, read and checked."""
