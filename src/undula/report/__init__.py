"""Tables that carry the trivial rows and a skill score."""
