"""Which token comes next: a request's parameters, the samplers, log-probabilities."""
