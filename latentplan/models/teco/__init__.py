"""TECO: a world model of video with a long memory."""
