"""A real Ray cluster: where sites are, whether its nodes are fit, and who may join."""
