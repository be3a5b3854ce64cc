"""Noise as regulariser: generalisation, sharpness and few training images, against the scale of the noise.

`docs/regularisation.md` tells what comes out; `main_regularisation.py` makes it.
"""
