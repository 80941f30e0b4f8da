"""An adapter trained on emoji, as users would train on images of their own."""
