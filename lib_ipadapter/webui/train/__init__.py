"""The Train tab: trainings are started, followed and stopped from the page and by routes."""
