"""The mathematics of the diffusion: tensors in, tensors out, no networks, files or configuration."""

from .process import diffuse, draw_endpoint, noise_to_velocity, posterior, velocity, velocity_to_clean
from .samplers import SAMPLERS, adams, ancestral, dpm2m
from .schedule import NOISE_SCHEDULES, alpha_bar_of

__all__ = ["NOISE_SCHEDULES", "SAMPLERS", "adams", "alpha_bar_of", "ancestral", "diffuse", "dpm2m", "draw_endpoint",
           "noise_to_velocity", "posterior", "velocity", "velocity_to_clean"]
