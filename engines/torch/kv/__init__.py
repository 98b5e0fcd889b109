"""KV of one model: block tables, stored prefixes, copies in host memory."""
