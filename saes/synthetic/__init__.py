"""Ground truth: activations whose features are known, and how much of them a dictionary finds (`unweave bench synthetic`)."""
