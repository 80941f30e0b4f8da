"""Evaluations in processes of their own, and what they found."""
