"""VideoWorld: discrete codes of what changes in a video, and a transformer that generates them."""
