"""Why the surrogate gradient is a density: firing probabilities, exact gradients by enumeration, and estimates of them.

`docs/theory.md` tells it with pictures; `main_theory.py` makes them.
"""
