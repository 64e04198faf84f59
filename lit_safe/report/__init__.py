"""What a run has to say for itself: tables, a page of Markdown, a figure."""
