"""Reports: one self-contained HTML page and a PNG, both drawn from the same sheet of panels."""
