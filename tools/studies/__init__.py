"""The studies main_theory.py, main_regularisation.py and main_coding.py."""
