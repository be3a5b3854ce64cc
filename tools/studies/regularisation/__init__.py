"""Noise as regulariser: generalisation, sharpness and few training images, against the scale of the noise.

`docs/noise-as-regulariser.md` tells what comes out; `main_regularisation.py` makes it.
"""
