"""Ordinary differential equations with a learned right-hand side."""
