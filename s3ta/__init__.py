"""S3TA: image classifiers with sequential top-down attention, attacked and trained adversarially.

Pure torch: no scheduler, no tracker, no storage. Images are in [0, 1] everywhere.
"""
