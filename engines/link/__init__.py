"""The link between server and worker: messages, descriptors and shared memory. Both sides import it."""
