"""What `benchmark.py` measures: our forms and the peers, each in processes of its own."""
