"""A search: what is searched, how it is laid out in programs, and its training."""
