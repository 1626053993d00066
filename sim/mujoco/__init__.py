"""The MuJoCo engines of the tasks; `import mujoco` is the simulator all the same."""
