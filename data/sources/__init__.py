"""One file a dataset: raw rows in, validated ``Row``s out."""
