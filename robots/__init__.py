"""Arms: descriptions with limits, kinematics, timed trajectories, and arms that MuJoCo moves."""
