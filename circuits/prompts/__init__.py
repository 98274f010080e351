"""One prompt, asked: which features fire and matter, what changing them does against random directions, what is written then."""
