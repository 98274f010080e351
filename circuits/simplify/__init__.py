"""What a graph is asked for: scores, paths, pruning, groups, comparisons; and weights without a prompt."""
