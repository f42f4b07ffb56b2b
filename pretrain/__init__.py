"""Teaching the model to see: contrast, pixel values, referring masks."""
