"""Moving surfaces: one protein structure in, its moving molecular surface out (MoE-DSR, DSR)."""
