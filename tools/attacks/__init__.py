"""Attacks on noisy spiking networks, in pixels of [0, 1], and checks that say whether to believe them.

`campaign` is where to start: the presets, and everything in one call. `victim`: a network as attacks see it, the choice
among attacked images, and the score on them. `twins`: copies of a network with other gradient paths. `gradients`,
`square`: the attacks. `gates`: the checks.
"""
