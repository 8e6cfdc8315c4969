"""What happens to a photograph: images, depth, select, captions, measure, rows."""
