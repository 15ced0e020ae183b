"""What strangers send or name: images, addresses and paths come in unchecked; go out decoded, fetched or refused."""
