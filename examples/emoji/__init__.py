"""The emoji: pictures that we did not draw, fetched and trained on as the paper's users would with their own."""
