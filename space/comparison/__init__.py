"""What models make of pictures and clips: which there are, how they are opened and asked, and what is kept; no page."""
