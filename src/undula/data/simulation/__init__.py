"""Simulations by OpenMM, the extra "simulate": argon, water, alanine dipeptide, proteins."""
