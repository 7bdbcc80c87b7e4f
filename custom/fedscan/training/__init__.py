"""Local training, the warm trainer child, and what becomes of many sites' updates. Knows no federation framework."""
