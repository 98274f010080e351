"""How a dictionary is judged: one file for each family of numbers, put together by `saes/evaluate.py`."""
