"""Offline science: data sets, protocols, methods and their results.

Nothing that serves or trains for Label Studio imports this room.
"""
