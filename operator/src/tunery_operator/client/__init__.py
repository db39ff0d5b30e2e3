"""Call the API server: requests, children, statuses, events, and the permissions for them."""
