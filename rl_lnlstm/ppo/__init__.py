"""Proximal policy optimisation of recurrent policies."""
