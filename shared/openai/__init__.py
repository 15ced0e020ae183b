"""What OpenAI's batches are, for the API that accepts them and the housekeeper that works them off."""
