"""Routes that clients written for OpenAI's API find where they expect them, on the same jobs as everything else."""
