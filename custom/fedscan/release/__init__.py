"""What leaves the project: synthetic slices as files, each saying that it is synthetic."""
