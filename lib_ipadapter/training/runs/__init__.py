"""Trainings in processes of their own, from a first look at the data to the adapter in the list of models."""
