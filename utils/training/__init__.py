"""The training loop, run folders, processes, devices and signals."""
