"""Attacks on noisy spiking networks, in pixels of [0, 1], and the checks that tell whether to believe them.

`campaign` is where to start: the presets, and everything in one call. `victim`: a network as attacks see it. `twins`:
copies of a network with other gradient paths. `gradients`, `square`: the attacks. `scores`: choice among candidates,
and how well the network does on the chosen ones. `gates`, `checks`: whether to believe a result.
"""
