"""The science: label trees, the tree loss, the network, the choice of depth. Arithmetic only, no I/O."""
