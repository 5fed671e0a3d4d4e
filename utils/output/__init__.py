"""Forecast files, pictures, tables and the report."""
