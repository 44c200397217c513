"""Batch prediction: a bundle over all rows of a source, by many processes, into Parquet files."""
