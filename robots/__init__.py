"""Arms: descriptions with limits, kinematics, timed trajectories, and arms simulated by MuJoCo."""
