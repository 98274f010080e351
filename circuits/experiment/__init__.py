"""Features changed in the live model, and what that says of a graph."""
