"""The server as one document that is published as it changes: state, patches, history, alerts."""
