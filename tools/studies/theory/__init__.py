"""Why the surrogate gradient is a density: firing probabilities, exact gradients by enumeration, and estimates."""
