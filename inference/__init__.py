"""Trained models as things on disk and in memory."""
