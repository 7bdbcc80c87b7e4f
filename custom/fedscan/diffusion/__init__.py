"""The diffusion model: the network from a plan, the process (schedule, noising, targets, weights), the samplers."""
