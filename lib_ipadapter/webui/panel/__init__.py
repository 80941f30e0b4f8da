"""The panel in the page: its components, their events, and what they mean as units."""
