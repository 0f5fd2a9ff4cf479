"""Offline science: data sets, protocols and rivals that `hrn evaluate` measures, and its reports.

Nothing that serves or trains for Label Studio imports this room.
"""
