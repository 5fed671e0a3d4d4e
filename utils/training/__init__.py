"""The training loop, run folders, processes and devices."""
