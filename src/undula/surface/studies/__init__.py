"""Studies: many trainings under one protocol, scored on proteins that none of them has seen."""
