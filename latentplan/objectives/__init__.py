"""What a plan costs; lower is better, always."""
