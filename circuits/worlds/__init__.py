"""Models whose circuits are known, and how well they are found."""
