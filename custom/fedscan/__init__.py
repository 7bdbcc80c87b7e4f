"""Fedscan: hospitals train one diffusion model of chest CT together, and every scan stays at home."""

__version__ = "0.1.0"
