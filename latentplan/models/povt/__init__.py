"""POVT: video of objects, by boxes that the user may set, glimpses of them, and a short memory."""
