"""The methods HRN is compared with, each after its own paper, for any tree.

Every one is a :class:`hierarchy.rivals.base.Rival`: feature maps in, its own loss, and its own way
to read an answer at each level out of what it computed.
"""
