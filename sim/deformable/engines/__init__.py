"""The MuJoCo and PyBullet engines of rope and cloth."""
