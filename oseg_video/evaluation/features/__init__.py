"""What metrics that compare features share: networks and their weights, Fréchet distances, real clips."""
