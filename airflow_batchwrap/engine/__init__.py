"""What runs on the node: Python 3.8 or newer, the standard library and nothing else."""
