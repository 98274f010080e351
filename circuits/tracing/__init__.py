"""From a prompt to rows: the frozen pass, what is cut in it, and cotangents carried down."""
