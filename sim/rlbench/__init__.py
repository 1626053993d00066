"""The tasks of RLBench (James et al. 2020), where the user has CoppeliaSim and RLBench."""
