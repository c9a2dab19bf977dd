"""DoMiNO: an observed window of a trajectory in, every atom at any later time out."""
