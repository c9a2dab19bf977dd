"""Learning: a task, a loop, checkpoints. Knows tensors and a `Task`, not one word of molecules."""
