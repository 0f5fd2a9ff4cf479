"""Figures that README quotes, one script each."""
