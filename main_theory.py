"""Why the surrogate gradient is a density: measured firing probabilities, and gradients against exact ones.

`docs/theory.md` tells what comes out. `python main_theory.py --help` lists all settings.
"""

from tools.cli import study
from tools.studies.theory.experiments import EXPERIMENTS

if __name__ == "__main__":
    study("theory", "Firing probabilities and gradients of noisy neurons against exact ones.", EXPERIMENTS)
