"""Why the surrogate gradient is a density: measured firing probabilities, and gradients against exact ones.

docs/theory.md has the results. `python main_theory.py --help` lists all settings.
"""

from tools.cli import study


def chosen(arguments):
    from tools.studies.theory.experiments import EXPERIMENTS  # needs SciPy and Matplotlib, which --help does without

    return EXPERIMENTS


if __name__ == "__main__":
    study("theory", "Firing probabilities and gradients of noisy neurons against exact ones.", chosen)
