"""Attacks on noisy spiking networks, in pixels of [0, 1], and the checks that tell whether to believe them.

`victim`: a network as attacks see it, averaged over draws of its noise. `twins`: relatives of a network through which
gradients flow otherwise. `gradients` and `square`: the attacks. `scores`: choice among candidates, and how well the
network does on the chosen ones. `gates`: checks of a result. `campaign`: the presets, all of it in one call.
"""
