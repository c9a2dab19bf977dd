"""Studies of DoMiNO: many trainings under one protocol, scored once on recordings kept apart."""
