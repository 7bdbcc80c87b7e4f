"""How near synthetic slices are to real ones: features, and distances from sums that add up over sites."""
