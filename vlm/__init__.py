"""The model: pixels and text in; text, action scores, pixel values or masks out."""
