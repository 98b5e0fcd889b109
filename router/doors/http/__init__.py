"""Parts that all HTTP doors share: errors, middleware, server-sent events."""
