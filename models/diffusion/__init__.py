"""The mathematics of the diffusion: tensors in, tensors out, no networks, files or configuration."""

from .process import diffuse, draw_endpoint, noise_to_clean, posterior, velocity, velocity_to_noise
from .samplers import SAMPLERS, ancestral, ddim, dpm2m
from .schedule import NOISE_SCHEDULES, alpha_bar_of

__all__ = ["NOISE_SCHEDULES", "SAMPLERS", "alpha_bar_of", "ancestral", "ddim", "diffuse", "dpm2m", "draw_endpoint",
           "noise_to_clean", "posterior", "velocity", "velocity_to_noise"]
