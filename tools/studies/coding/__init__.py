"""Populations of neurons that see a movie: movies, cells whose truth is known, recordings, and networks fitted to them.

Movies are float32 [T, H, W], spikes [R, T, N]: R trials of T frames (one bin each), N cells. What is
measured of them is in `tools.analysis.spike_trains`.
"""
