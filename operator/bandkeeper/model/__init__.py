"""Small models that the decision rests on: histograms, the load curve, memory of peaks. Pure."""
