"""Results of a run: what it leaves in its folder, written, read and checked here alone."""
