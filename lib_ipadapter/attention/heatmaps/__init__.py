"""Heat maps: where in the picture each reference acted."""
