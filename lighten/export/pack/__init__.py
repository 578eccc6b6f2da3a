"""The archive: a folder in one file, as small as its content allows. docs/formats.md describes the format byte by byte."""
