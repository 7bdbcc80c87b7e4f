"""Readers of exports: headers only, one module for each format."""
