"""Files in and out. The only place where units are converted."""
