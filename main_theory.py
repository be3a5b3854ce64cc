"""Why the surrogate gradient is a density: firing and gradients compared with exact ones (docs/theory.md)."""

from tools.cli import study


def chosen(arguments):
    from tools.studies.theory.experiments import EXPERIMENTS  # needs SciPy; --help does not

    return EXPERIMENTS


if __name__ == "__main__":
    study("theory", __doc__, chosen)
