"""What the demo and the end-to-end tests share: kubectl, the installed chart, tenants, published adapters."""
