"""Bare mathematics of points, fields and surfaces: tensors in, tensors out."""
