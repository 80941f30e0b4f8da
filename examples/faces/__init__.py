"""A FaceID adapter and a plain one, trained on people that a generator made up."""
