"""The machine of a run: device, processes, interruption, random generators, provenance."""
