"""Moving pictures, sounds and stills in and out of files: one reader for everything that takes media."""
