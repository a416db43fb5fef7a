"""The check of data before a run: would training take every record, and what is in them?"""
