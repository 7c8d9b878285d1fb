"""From files to rows: whatever a file is packed in and however it holds rows, each comes out as fields with a place."""
