"""Kernels and their references. Nothing here imports the rest of the package."""
