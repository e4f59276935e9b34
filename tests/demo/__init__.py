"""`make demo`: three objectives under one load, a live table, a summary and a report with a picture."""
