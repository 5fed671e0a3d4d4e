"""Real and synthetic spatiotemporal fields as windows of tensors."""
