"""What the page and the server have in common: who may ask them for what."""
