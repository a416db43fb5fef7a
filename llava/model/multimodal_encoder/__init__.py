"""Vision towers, and the image processor in front of them."""
