"""Noise as regulariser: generalisation, sharpness and few training images, against the scale of the noise."""
