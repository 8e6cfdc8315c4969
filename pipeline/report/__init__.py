"""An HTML page that shows a manifest, and pictures of single photographs."""
