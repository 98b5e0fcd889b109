"""The KV pool of a worker: pages, blocks and the blocks that are kept to be found again."""
