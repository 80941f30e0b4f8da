"""From a unit to an image prompt: references resolved, encoded, combined, projected to tokens."""
