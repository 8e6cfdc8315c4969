"""What happens to one photograph: images, depth, select, captions, measure, rows."""
