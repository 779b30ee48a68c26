"""Reports on policies: what they do, what they remember, and folders to share them."""
