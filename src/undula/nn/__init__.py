"""Network parts that both families share."""
