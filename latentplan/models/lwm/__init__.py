"""Large World Model: a transformer over long streams of images, proprioception and actions."""
