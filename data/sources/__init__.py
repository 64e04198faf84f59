"""One file per dataset: reads raw rows and returns validated ``Row``s."""
