"""Kernels and their references. Nothing in this folder imports the rest of the package."""
