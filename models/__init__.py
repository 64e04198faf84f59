"""What is trained: policy and reference, where they come from, and how they are adapted."""
