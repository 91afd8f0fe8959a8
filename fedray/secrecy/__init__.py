"""Secure sums: parties learn the sum of all sites' vectors and no single one.

Primitives and protocol as a pure library, without a graph and without a network. Start reading at
`encoding` (what is summed) and `keystream` (what hides it); docs/secure-sums.md tells the protocol.
"""
