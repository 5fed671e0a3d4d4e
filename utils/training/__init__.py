"""The training loop, run folders, devices and processes."""
