"""Stages, pseudo-labels, and the memories that stages hand on."""
