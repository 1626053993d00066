"""Multi-step inverse model of tokens: `multistep_inverse`."""
