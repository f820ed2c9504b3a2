"""The run store, the statistics over seeds, and the report: files in, tables and figures out."""
