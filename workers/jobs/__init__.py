"""Jobs in a worker: messages come in; claimed, prepared, batched, stored and settled, their results go out."""
