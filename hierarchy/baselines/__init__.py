"""The methods that HRN is compared with, each after its own paper, for any tree.

Every one is a :class:`hierarchy.baselines.base.Baseline`: features in, a loss of its own, and its
own way to read an answer at each level out of what it computed.
"""
