"""The lab: simulate, replay and compare before anyone risks a GPU. Uses the pure rooms only."""
