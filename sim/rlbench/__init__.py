"""The tasks of RLBench (James et al. 2020), for users with CoppeliaSim and RLBench."""
