"""What is learned from normal parts: generators, lambda, thresholds, figures."""
