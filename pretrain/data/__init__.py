"""Images: recorded games, folders of pictures and synthetic images."""
